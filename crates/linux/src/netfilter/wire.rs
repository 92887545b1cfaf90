//! nfnetlink messages: the attributes nf_tables and ctnetlink read and send, to and from bytes.
//!
//! Numbers in attributes are big-endian throughout nfnetlink; the headers are in host order.

/// Set in an attribute's type when attributes are within it.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// None yet.
    pub fn new() -> Self {
        Attributes::default()
    }

    /// Adds one that holds bytes as they are.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length =
            u16::try_from(value.len() + 4).expect("attributes are kept below 64 KiB by their makers");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds one that holds a text, ended by a zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut zero_ended = Vec::with_capacity(value.len() + 1);
        zero_ended.extend_from_slice(value.as_bytes());
        zero_ended.push(0);
        self.bytes(kind, &zero_ended)
    }

    /// Adds one that holds a number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds one that holds others.
    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.bytes)
    }

    /// Adds others after these.
    pub fn and(mut self, others: Attributes) -> Self {
        self.bytes.extend(others.bytes);
        self
    }

    /// Their length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Their bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

/// Attributes read from the kernel, in its order. What does not fit the rules of the format ends the iteration.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The value of the first attribute of a type.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    /// The attributes within the first one of a type.
    pub fn nested(self, kind: u16) -> Option<Reader<'a>> {
        self.get(kind).map(Reader::new)
    }

    /// The number in the first attribute of a type.
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// The text in the first attribute of a type.
    pub fn text(self, kind: u16) -> Option<String> {
        let value = self.get(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        String::from_utf8(value[..end].to_vec()).ok()
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Length of `struct nfgenmsg`.
const GENERIC: usize = 4;

/// Appends one message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
pub fn message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    attributes: &Attributes,
) {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).expect("a message is below 4 GiB");
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(attributes.as_slice());
}

/// One message of a datagram from the kernel.
#[derive(Debug)]
pub struct Received<'a> {
    /// Its type: the subsystem, and what it is about within that.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The number of the request that this answers.
    pub sequence: u32,
    /// The port of the socket that this answers, or whose request is announced.
    pub port: u32,
    /// What follows `struct nlmsghdr`.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after `struct nfgenmsg`.
    pub fn attributes(&self) -> Reader<'a> {
        Reader::new(self.payload.get(GENERIC..).unwrap_or_default())
    }

    /// The address family in `struct nfgenmsg`.
    pub fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// The (positive) error number of NLMSG_ERROR and NLMSG_DONE; 0 acknowledges.
    pub fn errno(&self) -> i32 {
        let number = self
            .payload
            .get(..4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes);
        number.map_or(0, i32::wrapping_neg)
    }
}

/// The messages of a datagram; a length that makes no sense ends it.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(datagram.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(datagram.get(at..at + 2)?.try_into().ok()?));
        let length = word(0)? as usize;
        let (kind, flags, sequence) = (half(4)?, half(6)?, word(8)?);
        let port = word(12)?;
        let payload = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind,
            flags,
            sequence,
            port,
            payload,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let attributes = Attributes::new()
            .text(1, "podnet")
            .nest(2, Attributes::new().u32(1, 7).bytes(2, &[1]));
        let mut buffer = Vec::new();
        message(&mut buffer, 0x0a00, 5, 9, (1, 10), &attributes);
        let read: Vec<_> = messages(&buffer).collect();
        assert_eq!(
            (read.len(), read[0].kind, read[0].flags, read[0].sequence),
            (1, 0x0a00, 5, 9)
        );
        assert_eq!(read[0].attributes().text(1).as_deref(), Some("podnet"));
        let inner = read[0].attributes().nested(2).unwrap();
        assert_eq!((inner.u32(1), inner.get(2)), (Some(7), Some(&[1][..])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = (message.errno(), message.attributes().nested(1).and_then(|inner| inner.text(2)));
            }
            Reader::new(&bytes).for_each(drop);
        }
    }
}
