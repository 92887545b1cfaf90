//! The cluster's DNS, question to answer and bytes to bytes: no sockets, no clock, no tasks.
//!
//! The wire format is written out here rather than taken from a library: of a message only the question and the OPT
//! record are read, and answers are written from the names table straight into the caller's buffer. That costs a
//! fraction of what building and encoding messages does. The tests read every answer with a library.

mod answer;
mod autopath;
mod name;
mod query;
mod records;
mod reply;
mod zone;

pub use answer::{respond, servfail};

use podnet_core::cluster::DomainName;
use podnet_core::names::Names;

/// What answers depend on besides the question.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The cluster's names.
    pub names: &'a Names,
    /// The zone's serial number; the names' generation serves.
    pub serial: u32,
    /// Which of several records comes first. It should differ from question to question, so that clients that take the
    /// first are spread.
    pub turn: u32,
    /// The search list of who asks, where it is known: a name with the first of it appended is looked up with the
    /// others appended too, so that the list costs the client one question instead of many. In lower case.
    pub searches: &'a [DomainName],
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the answer has 512 bytes, or what the question's OPT record allows, up to 1232.
    Udp,
    /// In a stream, without the two bytes of length: the answer may have 65535 bytes.
    Tcp,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is whole.
    Answered,
    /// The name is none of ours. The answer is a refusal, for want of somebody to ask.
    Outside,
    /// The name is an alias of one that is none of ours. The answer has the aliases only.
    LeadsOutside,
    /// Nothing is to be sent: it was no question, and an answer could begin a loop.
    Silence,
}

/// The response codes in use (RFC 1035, section 4.1.1; RFC 6891, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// Record types (RFC 1035, 2782, 3596, 6891).
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The Internet's class.
pub(crate) const CLASS_IN: u16 = 1;
