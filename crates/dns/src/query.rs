//! Reading a question (RFC 1035, section 4.1; RFC 6891).

use crate::name::Name;
use crate::{Rcode, rtype};

/// The length of a message's header.
pub(crate) const HEADER: usize = 12;

/// A message that asks something.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    /// The header's first four bytes: identifier and flags.
    pub(crate) head: [u8; 4],
    /// The question as it came, case and all; empty when it is not to be repeated.
    pub(crate) question: &'a [u8],
    /// The name in question.
    pub(crate) name: Name,
    /// Which type of records.
    pub(crate) rtype: u16,
    /// Of which class.
    pub(crate) class: u16,
    /// What its OPT record says.
    pub(crate) edns: Option<Edns>,
}

/// An OPT record. Its options are passed over: none of those there are may be answered with an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edns {
    /// The largest datagram that can be taken.
    pub(crate) size: u16,
    /// Only version 0 exists.
    pub(crate) version: u8,
    /// Whether DNSSEC's records are understood.
    pub(crate) dnssec_ok: bool,
}

/// A message that is no question to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Not a question at all.
    Silence,
    /// To be told what is wrong with it.
    Wrong([u8; 4], Rcode),
}

impl<'a> Query<'a> {
    /// Reads a message.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Unusable> {
        let Some(header) = message.first_chunk::<HEADER>() else {
            return Err(Unusable::Silence);
        };
        let head = [header[0], header[1], header[2], header[3]];
        if header[2] & 0x80 != 0 {
            return Err(Unusable::Silence);
        }
        if header[2] >> 3 & 0xf != 0 {
            return Err(Unusable::Wrong(head, Rcode::NotImp));
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let wrong = Unusable::Wrong(head, Rcode::FormErr);
        if count(4) != 1 {
            return Err(wrong);
        }
        let rest = &message[HEADER..];
        let name = Name::parse(rest).ok_or(wrong)?;
        let length = name.wire().len() + 4;
        let question = rest.get(..length).ok_or(wrong)?;
        let [.., t1, t2, c1, c2] = *question else {
            return Err(wrong);
        };
        let edns = opt(&rest[length..], [count(6), count(8)], count(10)).map_err(|Malformed| wrong)?;
        Ok(Query {
            head,
            question,
            name,
            rtype: u16::from_be_bytes([t1, t2]),
            class: u16::from_be_bytes([c1, c2]),
            edns,
        })
    }
}

#[derive(Debug)]
struct Malformed;

/// The OPT record among the additional records. Records of the two sections before are passed over.
fn opt(records: &[u8], before: [u16; 2], additional: u16) -> Result<Option<Edns>, Malformed> {
    let mut rest = records;
    let mut found = None;
    let passed = u32::from(before[0]) + u32::from(before[1]);
    for number in 0..passed + u32::from(additional) {
        let name = skip_name(rest).ok_or(Malformed)?;
        let (head, after) = rest[name..].split_first_chunk::<10>().ok_or(Malformed)?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        if u16::from_be_bytes([head[0], head[1]]) == rtype::OPT && number >= passed {
            // Its name is the root, and there is one at most (RFC 6891, section 6.1.1).
            if name != 1 || found.is_some() {
                return Err(Malformed);
            }
            found = Some(Edns {
                size: u16::from_be_bytes([head[2], head[3]]),
                version: head[5],
                dnssec_ok: head[6] & 0x80 != 0,
            });
        }
        rest = after.get(length..).ok_or(Malformed)?;
    }
    Ok(found)
}

/// The length of the name that `bytes` begins with. Pointers end it and are not followed.
fn skip_name(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..64 => at += 1 + usize::from(length),
            192.. => return (at + 2 <= bytes.len()).then_some(at + 2),
            _ => return None,
        }
    }
}
