//! A synchronous rtnetlink client: links, addresses, routes, neighbours and bridge forwarding entries, and
//! token buckets.
//!
//! What changes the kernel is a [`Request`], made from the thing it is about ([`Route::replace`],
//! [`NewLink::create`], ...). [`Netlink::apply`] sends many of them with one system call and reads every
//! acknowledgement. What asks the kernel is a method of [`Netlink`] and answers in this module's own types.
//!
//! Requests are encoded with netlink-packet-route. Answers are read attribute by attribute, and only those we
//! know: one odd attribute on a link that is none of ours must not blind us to all the others.

mod address;
mod link;
mod neighbour;
mod qdisc;
mod route;
mod rule;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use crate::mac::MacAddr;
pub use address::{Address, AddressFlags};
pub use link::{Link, LinkChange, LinkKind, NewLink, NewLinkKind, VethPeer, Vxlan};
pub use neighbour::{FdbEntry, Neighbour};
pub use qdisc::{Qdisc, TokenBucket};
pub use route::{MAIN_TABLE, Route, RouteFilter, RouteKind, Scope};
pub use rule::MarkRule;

use crate::ns::Namespace;

/// Most requests sent at once: their acknowledgements must fit into the socket's receive buffer, where a
/// message of 40 bytes is charged with close to a kilobyte.
const BATCH: usize = 100;
/// Most bytes sent at once, below the default send buffer.
const BATCH_BYTES: usize = 64 * 1024;
/// A dump that other changes interrupt is asked for again, so many times.
const DUMP_ATTEMPTS: usize = 16;
const RECEIVE_BUFFER: usize = 1 << 20;

/// Why a conversation with the kernel about its network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused a request.
    #[error("cannot {what}: {source}{}", Explained(.explanation))]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's own words (extended acknowledgement).
        explanation: Option<String>,
    },
    /// The socket failed.
    #[error("cannot {what}: the netlink socket failed: {source}")]
    Socket {
        /// What was asked for.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The kernel's tables changed during every attempt to read them.
    #[error("cannot {what}: the kernel's tables changed during each of {DUMP_ATTEMPTS} attempts")]
    Restless {
        /// What was asked for.
        what: String,
    },
    /// An answer that does not hold together.
    #[error("cannot {what}: the kernel's answer makes no sense: {reason}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

struct Explained<'a>(&'a Option<String>);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

impl NetlinkError {
    fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } | NetlinkError::Socket { source, .. } => {
                source.raw_os_error()
            }
            NetlinkError::Restless { .. } | NetlinkError::Malformed { .. } => None,
        }
    }

    /// What was to be removed, changed or asked about is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }

    /// What was to be added is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    fn socket(what: impl Into<String>, source: io::Error) -> Self {
        NetlinkError::Socket {
            what: what.into(),
            source,
        }
    }
}

/// One change to the kernel's network, not yet sent.
///
/// The lifetime is that of a namespace's descriptor which the request names by number.
#[derive(Debug, Clone)]
pub struct Request<'fd> {
    message: RouteNetlinkMessage,
    flags: u16,
    what: String,
    descriptor: PhantomData<&'fd ()>,
}

impl Request<'_> {
    fn new(message: RouteNetlinkMessage, flags: u16, what: String) -> Self {
        Request {
            message,
            flags,
            what,
            descriptor: PhantomData,
        }
    }

    fn encode(&self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | self.flags | flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(self.message.clone()));
        message.finalize();
        let start = buffer.len();
        let length = message.buffer_len();
        // Each message of a batch begins on a multiple of four (NLMSG_ALIGNTO).
        buffer.resize(start + length.next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..start + length]);
    }
}

/// What the request does, in words.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A message of an answer: its type and what follows the netlink header.
struct Answer {
    payload: Vec<u8>,
}

/// What became of one request.
struct Outcome {
    result: Result<(), NetlinkError>,
    answers: Vec<Answer>,
}

/// An rtnetlink socket. It belongs for good to the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::socket("open a netlink socket", source);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // The kernel explains refusals, does not send requests back with them, and takes a filter in a dump
        // seriously or refuses it.
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_netlink_get_strict_chk(true).map_err(failed)?;
        // Only a wish: the system's limit may be lower.
        drop(socket.set_rx_buf_sz(RECEIVE_BUFFER as libc::c_int));
        Ok(Netlink {
            socket,
            sequence: 0,
            received: vec![0; 64 * 1024],
        })
    }

    /// A socket in another network namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, NetlinkError> {
        namespace
            .run(Self::open)
            .map_err(|source| NetlinkError::socket("enter the network namespace", source))?
    }

    /// Sends all requests and waits for every acknowledgement.
    ///
    /// The kernel goes on after a request that it refuses; the first refusal is the error.
    pub fn apply<'fd>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'fd>>,
    ) -> Result<(), NetlinkError> {
        self.apply_each(requests)?.into_iter().collect()
    }

    /// Sends all requests and tells what became of each, in their order.
    pub fn apply_each<'fd>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'fd>>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        Ok(self
            .exchange(requests)?
            .into_iter()
            .map(|outcome| outcome.result)
            .collect())
    }

    /// Sends one request.
    pub fn request(&mut self, request: Request<'_>) -> Result<(), NetlinkError> {
        self.apply([request])
    }

    fn exchange<'fd>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'fd>>,
    ) -> Result<Vec<Outcome>, NetlinkError> {
        let mut outcomes = Vec::new();
        let mut batch = Vec::new();
        let mut buffer = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.encode(NLM_F_ACK, self.sequence, &mut buffer);
            batch.push((self.sequence, request.what));
            if batch.len() == BATCH || buffer.len() >= BATCH_BYTES {
                self.exchange_batch(&buffer, std::mem::take(&mut batch), &mut outcomes)?;
                buffer.clear();
            }
        }
        if !batch.is_empty() {
            self.exchange_batch(&buffer, batch, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn exchange_batch(
        &mut self,
        bytes: &[u8],
        batch: Vec<(u32, String)>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), NetlinkError> {
        let mut open: VecDeque<(u32, String)> = batch.into();
        let mut answers = Vec::new();
        self.send(bytes, &open[0].1)?;
        // The kernel handles the requests of a batch in their order, so do the acknowledgements come.
        while let Some((sequence, what)) = open.front() {
            let sequence = *sequence;
            let length = self.receive(what)?;
            for message in wire::Messages::new(&self.received[..length]) {
                let Some((expected, what)) = open.front() else {
                    break;
                };
                let message = message.map_err(|reason| malformed(what, reason))?;
                if message.sequence != *expected {
                    // A late answer to something given up earlier.
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR => {
                        let result = acknowledged(what, &message);
                        outcomes.push(Outcome {
                            result,
                            answers: std::mem::take(&mut answers),
                        });
                        open.pop_front();
                    }
                    NLMSG_OVERRUN => return Err(malformed(what, "overrun")),
                    _ => answers.push(Answer {
                        payload: message.payload.to_vec(),
                    }),
                }
            }
            debug_assert!(open.front().is_none_or(|(next, _)| *next >= sequence));
        }
        Ok(())
    }

    /// Asks for a whole table and gives each entry's message to `entry`.
    fn dump<T>(
        &mut self,
        request: &Request<'_>,
        mut entry: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(entries) = self.dump_once(request, &mut entry)? {
                return Ok(entries);
            }
        }
        Err(NetlinkError::Restless {
            what: request.what.clone(),
        })
    }

    /// None when the table changed meanwhile, so that entries may be missing.
    fn dump_once<T>(
        &mut self,
        request: &Request<'_>,
        entry: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let what = &request.what;
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        request.encode(NLM_F_DUMP, self.sequence, &mut buffer);
        self.send(&buffer, what)?;
        let mut entries = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.receive(what)?;
            for message in wire::Messages::new(&self.received[..length]) {
                let message = message.map_err(|reason| malformed(what, reason))?;
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => {
                        acknowledged(what, &message)?;
                        return Ok((!interrupted).then_some(entries));
                    }
                    NLMSG_ERROR => {
                        acknowledged(what, &message)?;
                        return Err(malformed(what, "a dump was acknowledged instead of answered"));
                    }
                    NLMSG_OVERRUN => return Err(malformed(what, "overrun")),
                    _ => entries.extend(entry(message.payload)),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::socket(what, error)),
            }
        }
    }

    fn receive(&mut self, what: &str) -> Result<usize, NetlinkError> {
        loop {
            match self.socket.recv(&mut &mut self.received[..], libc::MSG_TRUNC) {
                Ok(length) if length > self.received.len() => {
                    return Err(malformed(what, "a message does not fit into the buffer"));
                }
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::socket(what, error)),
            }
        }
    }
}

fn malformed(what: &str, reason: impl Into<String>) -> NetlinkError {
    NetlinkError::Malformed {
        what: what.into(),
        reason: reason.into(),
    }
}

/// Reads NLMSG_ERROR (an error number of zero acknowledges) and NLMSG_DONE, which are alike.
fn acknowledged(what: &str, message: &wire::Message<'_>) -> Result<(), NetlinkError> {
    match message.error() {
        None => Ok(()),
        Some((number, explanation)) => Err(NetlinkError::Refused {
            what: what.into(),
            source: io::Error::from_raw_os_error(number),
            explanation,
        }),
    }
}

#[cfg(test)]
mod tests;
