//! The netfilter netlink socket: requests, dumps, and batches that hold whole or not at all.

pub mod expression;
pub mod ipset;
pub mod wire;
pub mod xtables;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use self::wire::{Attributes, Received};

/// Tables, chains, rules and sets.
pub const SUBSYSTEM_NFTABLES: u16 = 10;
/// Connections.
pub const SUBSYSTEM_CONNTRACK: u16 = 1;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFT_MSG_GETGEN, and NFTA_GEN_ID in its answer.
const GET_GENERATION: u16 = 16;
const GENERATION_ID: u16 = 1;
const BATCH_GENID: u16 = 1;
const ERESTART: i32 = 85;
const EINVAL: i32 = 22;
const EPROTONOSUPPORT: i32 = 93;

/// A transaction is one write to the socket, so the send buffer must hold it: 10,000 services take some 4 MiB.
const SEND_BUFFER: usize = 128 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel answers at once; one that does not is a lost answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// The socket failed.
    #[error("cannot {what}: the netfilter socket failed: {source}")]
    Socket {
        /// What was asked for.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// One transaction does not fit into the socket.
    #[error(
        "{bytes} bytes of changes at once are more than the socket takes: raise net.core.wmem_max on the machine"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The kernel refused a message of a batch, and so the whole batch.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's error number.
        source: io::Error,
    },
    /// Somebody else changed nftables between our reading and our writing.
    #[error("nftables changed while podnet was reading it")]
    Changed,
}

impl NetfilterError {
    /// What was asked about or to be changed is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, NetfilterError::Refused { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What was to be made is there already.
    pub fn is_exists(&self) -> bool {
        matches!(self, NetfilterError::Refused { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }

    /// The kernel has no netfilter, or not the part of it that was asked.
    pub fn is_unsupported(&self) -> bool {
        let (source, errno) = match self {
            NetfilterError::Socket { source, .. } => (source, EPROTONOSUPPORT),
            NetfilterError::Refused { source, .. } => (source, EINVAL),
            _ => return false,
        };
        source.raw_os_error() == Some(errno)
    }
}

/// One message of a batch.
#[derive(Debug, Clone)]
pub struct Message {
    /// Within the subsystem.
    pub kind: u16,
    /// `NLM_F_*` beside those of every request.
    pub flags: u16,
    /// `NFPROTO_*`, or `AF_*` for connections.
    pub family: u8,
    /// What it is about.
    pub attributes: Attributes,
    /// For errors.
    pub what: String,
}

/// A socket in the network namespace in which it was opened.
pub struct Netfilter {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Netfilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netfilter")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Netfilter {
    /// For the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetfilterError> {
        let what = "open a netfilter socket";
        let failed = |source| socket_failed(what, source);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        let port = socket.bind_auto().map_err(failed)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Refusals need not carry the refused message.
        socket.set_cap_ack(true).map_err(failed)?;
        // Only a wish: without root the system's limit stands, and a change beyond it fails and says so
        // (the limit is net.core.wmem_max; the forced size needs the capability over the machine's own namespaces).
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket.as_fd(), SEND_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(socket.as_fd(), SEND_BUFFER);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_BUFFER);
        rustix::net::sockopt::set_socket_timeout(
            socket.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(PATIENCE),
        )
        .map_err(|error| failed(error.into()))?;
        Ok(Netfilter {
            socket,
            port,
            sequence: 0,
            buffer: vec![0; 128 << 10],
        })
    }

    /// The socket's address, by which the kernel tells whose change it announces.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Asks for something, and gives every message of the answer to `entry`.
    pub fn dump(
        &mut self,
        subsystem: u16,
        kind: u16,
        family: u8,
        attributes: &Attributes,
        what: &str,
        mut entry: impl FnMut(Received<'_>),
    ) -> Result<(), NetfilterError> {
        self.ask(subsystem << 8 | kind, REQUEST | DUMP, family, attributes, what)?;
        let mut interrupted = false;
        loop {
            let length = self.receive(what)?;
            for message in wire::messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    DONE | ERROR if message.errno() != 0 => return Err(refused(what, message.errno())),
                    DONE if interrupted => return Err(NetfilterError::Changed),
                    DONE | ERROR => return Ok(()),
                    _ => entry(message),
                }
            }
        }
    }

    /// Asks for one thing; `entry` gets the answer.
    pub fn get(
        &mut self,
        kind: u16,
        family: u8,
        what: &str,
        mut entry: impl FnMut(Received<'_>),
    ) -> Result<(), NetfilterError> {
        self.ask(
            SUBSYSTEM_NFTABLES << 8 | kind,
            REQUEST | ACK,
            family,
            &Attributes::new(),
            what,
        )?;
        self.until_acknowledged(what, &mut entry)
    }

    /// The number of nftables' rule set's generation: it grows with every change anybody makes in this network namespace.
    pub fn generation(&mut self) -> Result<u32, NetfilterError> {
        let mut generation = 0;
        self.get(GET_GENERATION, 0, "read nftables' generation", |message| {
            generation = message.attributes().u32(GENERATION_ID).unwrap_or_default();
        })?;
        Ok(generation)
    }

    /// Does one thing outside batches.
    pub fn request(&mut self, subsystem: u16, message: &Message) -> Result<(), NetfilterError> {
        let kind = subsystem << 8 | message.kind;
        self.ask(
            kind,
            REQUEST | ACK | message.flags,
            message.family,
            &message.attributes,
            &message.what,
        )?;
        self.until_acknowledged(&message.what, &mut |_| {})
    }

    fn until_acknowledged(
        &mut self,
        what: &str,
        entry: &mut dyn FnMut(Received<'_>),
    ) -> Result<(), NetfilterError> {
        loop {
            let length = self.receive(what)?;
            for message in wire::messages(&self.buffer[..length]) {
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    ERROR if message.errno() != 0 => return Err(refused(what, message.errno())),
                    ERROR => return Ok(()),
                    _ => entry(message),
                }
            }
        }
    }

    /// Sends the messages as one transaction: the kernel takes all of them or none. With `generation` it takes them
    /// only if nothing in nftables changed since that generation of the rule set; 0 takes any.
    pub fn transaction(&mut self, generation: u32, messages: &[Message]) -> Result<(), NetfilterError> {
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let begin = self.next();
        let checked = Attributes::new().u32(BATCH_GENID, generation);
        wire::message(
            &mut bytes,
            BATCH_BEGIN,
            REQUEST,
            begin,
            (0, SUBSYSTEM_NFTABLES),
            &checked,
        );
        let first = begin.wrapping_add(1);
        for (index, message) in messages.iter().enumerate() {
            let kind = SUBSYSTEM_NFTABLES << 8 | message.kind;
            // Refusals always come; one acknowledgement, of the last message, says that the batch is through.
            let flags = REQUEST | message.flags | if index == last { ACK } else { 0 };
            let sequence = self.next();
            wire::message(
                &mut bytes,
                kind,
                flags,
                sequence,
                (message.family, 0),
                &message.attributes,
            );
        }
        let end = self.sequence;
        let closing = self.next();
        wire::message(
            &mut bytes,
            BATCH_END,
            REQUEST,
            closing,
            (0, SUBSYSTEM_NFTABLES),
            &Attributes::new(),
        );
        self.send(&bytes, "change nftables")?;
        let mut refusal = None;
        loop {
            let length = self.receive("change nftables")?;
            for message in wire::messages(&self.buffer[..length]).filter(|message| message.kind == ERROR) {
                let errno = message.errno();
                if message.sequence == begin && errno == ERESTART {
                    return Err(NetfilterError::Changed);
                }
                if message.sequence == begin && errno != 0 {
                    return Err(refusal.unwrap_or_else(|| refused("change nftables", errno)));
                }
                if errno != 0 && refusal.is_none() {
                    let index = message.sequence.wrapping_sub(first) as usize;
                    let what = messages
                        .get(index)
                        .map_or("change nftables", |message| &message.what);
                    refusal = Some(refused(what, errno));
                }
                if message.sequence == end {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &Attributes,
        what: &str,
    ) -> Result<(), NetfilterError> {
        let sequence = self.next();
        let mut bytes = Vec::new();
        wire::message(&mut bytes, kind, flags, sequence, (family, 0), attributes);
        self.send(&bytes, what)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetfilterError> {
        let written = self
            .socket
            .send(bytes, 0)
            .map_err(|source| socket_failed(what, source))?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(socket_failed(what, io::ErrorKind::WriteZero.into()))
        }
    }

    fn receive(&mut self, what: &str) -> Result<usize, NetfilterError> {
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_failed(what, error)),
            }
        }
    }
}

fn socket_failed(what: &str, source: io::Error) -> NetfilterError {
    NetfilterError::Socket {
        what: what.into(),
        source,
    }
}

fn refused(what: &str, errno: i32) -> NetfilterError {
    NetfilterError::Refused {
        what: what.into(),
        source: io::Error::from_raw_os_error(errno),
    }
}
