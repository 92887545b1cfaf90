//! Netlink messages and attributes as the kernel sends them, read without trust in their lengths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_ERROR, NlasIterator};

const HEADER: usize = 16;
/// Attribute of an acknowledgement: the kernel's explanation (`NLMSGERR_ATTR_MSG`).
const EXPLANATION: u16 = 1;

/// One netlink message of a datagram.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The error number (positive) and the kernel's explanation, if this message refuses something.
    pub(crate) fn error(&self) -> Option<(i32, Option<String>)> {
        let number = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        if number == 0 {
            return None;
        }
        Some((-number, self.explanation()))
    }

    fn explanation(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let mut offset = 4;
        if self.kind == NLMSG_ERROR {
            // The refused request follows: its header only, or all of it.
            let length = u32::from_ne_bytes(self.payload.get(4..8)?.try_into().ok()?) as usize;
            offset += if self.flags & NLM_F_CAPPED != 0 {
                HEADER
            } else {
                length.next_multiple_of(4)
            };
        }
        attributes(self.payload, offset)
            .find(|(kind, _)| *kind == EXPLANATION)
            .and_then(|(_, value)| text(value))
    }
}

/// The messages of a datagram.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        if rest.len() < HEADER {
            return Some(Err(format!(
                "{} bytes where a message header was expected",
                rest.len()
            )));
        }
        let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let length = word(0) as usize;
        if length < HEADER || length > rest.len() {
            return Some(Err(format!(
                "a message of {length} bytes in a datagram of {}",
                rest.len()
            )));
        }
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            payload: &rest[HEADER..length],
        }))
    }
}

/// The attributes that follow a fixed header of `header` bytes; what is cut off is left out.
pub(crate) fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let rest = payload.get(header..).unwrap_or_default();
    NlasIterator::new(rest).map_while(Result::ok).map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        (kind, attribute.into_inner().get(4..length).unwrap_or_default())
    })
}

/// A text with or without its closing zero.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
}

pub(crate) fn byte(value: &[u8]) -> Option<u8> {
    value.first().copied()
}

pub(crate) fn half(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
}

pub(crate) fn half_be(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

pub(crate) fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// An address of either family, told apart by length.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value)
        .ok()
        .map(|octets| Ipv6Addr::from(octets).into())
}
