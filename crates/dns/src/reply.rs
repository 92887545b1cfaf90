//! Writing an answer (RFC 1035, section 4.1; RFC 6891; RFC 8914).

use std::net::IpAddr;

use crate::query::{Edns, HEADER};
use crate::{CLASS_IN, Rcode, Transport, rtype};

/// The size of datagrams that we take, and the largest that we send: fits every link of IPv6 with its headers.
const DATAGRAM: u16 = 1232;
/// The length of an OPT record without options.
const OPT: usize = 11;
/// Pointers have 14 bits (RFC 1035, section 4.1.4).
const POINTERS: usize = 1 << 14;

/// A reason in words for who looks (RFC 8914).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reason {
    /// The info code.
    pub(crate) code: u16,
    /// The text.
    pub(crate) text: &'static str,
}

/// A name that stands in the message already, from `offset` on, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Place {
    /// The name in question.
    pub(crate) const QUESTION: Place = Place(HEADER);

    /// The end of a name, from so many bytes on.
    pub(crate) fn after(self, bytes: usize) -> Self {
        Place(self.0 + bytes)
    }
}

/// The record did not fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Full;

/// An answer being written. Records come in the order of sections: answer, authority, additional.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    edns: Option<Edns>,
    counts: [u16; 3],
    reason: Option<Reason>,
}

/// A section of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

impl<'a> Reply<'a> {
    /// An answer to a message with that head and that question, without records yet.
    pub(crate) fn new(
        head: [u8; 4],
        question: &[u8],
        edns: Option<Edns>,
        transport: Transport,
        out: &'a mut Vec<u8>,
    ) -> Self {
        let limit = match (transport, edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => 512,
            (Transport::Udp, Some(edns)) => usize::from(edns.size.clamp(512, DATAGRAM)),
        };
        out.clear();
        let [id1, id2, flags, more] = head;
        // Opcode, RD and CD are the question's.
        out.extend([id1, id2, 0x80 | flags & 0x79, more & 0x10]);
        out.extend([0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
        out.extend(question);
        Reply {
            out,
            limit: limit - edns.map_or(0, |_| OPT),
            edns,
            counts: [0; 3],
            reason: None,
        }
    }

    /// Says that we are who knows.
    pub(crate) fn authoritative(&mut self) {
        self.out[2] |= 0x04;
    }

    /// Whether the answer section has something.
    pub(crate) fn has_answers(&self) -> bool {
        self.counts[Section::Answer as usize] > 0
    }

    /// Says that something is missing (RFC 2181, section 9).
    pub(crate) fn truncated(&mut self) {
        self.out[2] |= 0x02;
    }

    /// Adds a reason, for clients that understand EDNS.
    pub(crate) fn because(&mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    /// Takes all records back.
    pub(crate) fn restart(&mut self, question: &[u8]) {
        self.out.truncate(HEADER + question.len());
        self.counts = [0; 3];
    }

    /// Adds a record whose data `write` appends. When it does not fit, it is as if it had not been.
    pub(crate) fn record(
        &mut self,
        section: Section,
        owner: Place,
        rtype: u16,
        ttl: u32,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        let begin = self.out.len();
        self.name(owner);
        self.out.extend(rtype.to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        self.out.extend([0, 0]);
        let data = self.out.len();
        write(self.out);
        let length = u16::try_from(self.out.len() - data).unwrap_or(u16::MAX);
        let count = &mut self.counts[section as usize];
        if self.out.len() > self.limit || *count == u16::MAX {
            self.out.truncate(begin);
            return Err(Full);
        }
        *count += 1;
        self.out[data - 2..data].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Adds an A or AAAA record.
    pub(crate) fn address(
        &mut self,
        section: Section,
        owner: Place,
        ttl: u32,
        address: IpAddr,
    ) -> Result<(), Full> {
        match address {
            IpAddr::V4(address) => {
                self.record(section, owner, rtype::A, ttl, |out| out.extend(address.octets()))
            }
            IpAddr::V6(address) => self.record(section, owner, rtype::AAAA, ttl, |out| {
                out.extend(address.octets())
            }),
        }
    }

    /// Where the data of the next record begins, if its owner is `owner`.
    pub(crate) fn next_data(&self, owner: Place) -> Place {
        Place(self.out.len() + self.name_length(owner) + 10)
    }

    fn name_length(&self, name: Place) -> usize {
        if name.0 < POINTERS {
            2
        } else {
            self.spelled(name).len()
        }
    }

    /// The whole name at a place beyond the reach of pointers: it was written out there, being data.
    fn spelled(&self, name: Place) -> &[u8] {
        let rest = &self.out[name.0..];
        let mut end = 0;
        while rest[end] != 0 {
            end += 1 + usize::from(rest[end]);
        }
        &rest[..=end]
    }

    fn name(&mut self, name: Place) {
        if let Some(pointer) = u16::try_from(name.0).ok().filter(|_| name.0 < POINTERS) {
            self.out.extend((0xc000 | pointer).to_be_bytes());
        } else {
            let length = self.spelled(name).len();
            self.out.extend_from_within(name.0..name.0 + length);
        }
    }

    /// Ends the message.
    pub(crate) fn finish(mut self, rcode: Rcode) {
        let code = rcode as u8;
        self.out[3] |= code & 0xf;
        if let Some(edns) = self.edns {
            self.opt(edns, code >> 4);
        }
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }

    fn opt(&mut self, asked: Edns, extended: u8) {
        let out = &mut *self.out;
        // The record itself has its place reserved; a reason has to fit beside what there is.
        let room = self.limit.saturating_sub(out.len());
        out.push(0);
        out.extend(rtype::OPT.to_be_bytes());
        out.extend(DATAGRAM.to_be_bytes());
        out.extend([extended, 0, u8::from(asked.dnssec_ok) << 7, 0]);
        match self.reason.filter(|reason| reason.text.len() + 6 <= room) {
            None => out.extend([0, 0]),
            Some(Reason { code, text }) => {
                let length = u16::try_from(text.len()).unwrap_or(0);
                out.extend((length + 6).to_be_bytes());
                // The option of extended errors is number 15.
                out.extend([0, 15]);
                out.extend((length + 2).to_be_bytes());
                out.extend(code.to_be_bytes());
                out.extend(text.as_bytes());
            }
        }
        self.counts[Section::Additional as usize] += 1;
    }
}
