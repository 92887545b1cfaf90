//! Services at connect time: a socket that asks for a service gets one of its endpoints as its peer, so that no packet
//! is rewritten.
//!
//! Three kinds of calls meet services. `connect` of TCP chooses once. A datagram that is sent without a connected socket
//! chooses by itself, and the next one of that socket to that service stays with the choice as long as its endpoint serves.
//! An answer, and who asks for a socket's peer, see the service again.
//!
//! Connected sockets of UDP are left to whoever translates packets: they may live longer than their endpoint and go on
//! sending, and the kernel asks nobody when they do.

use crate::{Endpoint, Frontend};

/// The version of the maps' layouts: whoever changes one counts it up, and an agent that finds maps of another makes its
/// own.
pub const LAYOUT: u32 = 1;

/// How many endpoints a service has for new connections: 4 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Balance {
    /// At least one; they are in the slots from 0 on.
    pub endpoints: u32,
}

/// Where an endpoint of a service is: 24 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Slot {
    /// The service.
    pub frontend: Frontend,
    /// From 0 on.
    pub number: u32,
}

/// That datagrams to a service may go on to an endpoint, which may be one that gets no new ones: 40 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Serving {
    /// The service.
    pub frontend: Frontend,
    /// The endpoint.
    pub endpoint: Endpoint,
}

/// A socket and what it sent a datagram to: 32 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Asked {
    /// The socket's cookie, which no other socket has until the machine starts again.
    pub socket: u64,
    /// The service.
    pub frontend: Frontend,
    zero: u32,
}

impl Asked {
    /// By a socket, for a service.
    #[inline(always)]
    pub const fn new(socket: u64, frontend: Frontend) -> Self {
        Asked {
            socket,
            frontend,
            zero: 0,
        }
    }
}

/// A socket and who answers it: 32 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Answers {
    /// The socket's cookie.
    pub socket: u64,
    /// The endpoint.
    pub endpoint: Endpoint,
    zero: u32,
}

impl Answers {
    /// To a socket, from an endpoint.
    #[inline(always)]
    pub const fn new(socket: u64, endpoint: Endpoint) -> Self {
        Answers {
            socket,
            endpoint,
            zero: 0,
        }
    }
}

/// A connection that was led: 40 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Peer {
    /// Whom the socket asked for.
    pub asked: Endpoint,
    /// Whom it got.
    pub endpoint: Endpoint,
}

impl Peer {
    /// Whom a socket takes for its peer, which is `peer` in truth; none where that is its peer. It may have been connected
    /// again since, past us.
    #[inline(always)]
    pub fn seen(&self, peer: Endpoint) -> Option<Endpoint> {
        (self.endpoint == peer).then_some(self.asked)
    }
}

/// The services that sockets are led to.
pub trait Services {
    /// How many endpoints a service has; none where it is no service, or one that only packets are translated for.
    fn balance(&self, frontend: &Frontend) -> Option<Balance>;
    /// One of them; none for the moment in which their number changes.
    fn endpoint(&self, slot: &Slot) -> Option<Endpoint>;
    /// Whether datagrams to the service may go on to that endpoint.
    fn serves(&self, serving: &Serving) -> bool;
}

/// What is remembered of sockets that send without being connected.
pub trait Datagrams {
    /// Where the last datagram of a socket to a service went.
    fn chosen(&self, asked: &Asked) -> Option<Endpoint>;
    /// Remembers both directions; says whether there was room.
    fn choose(&self, asked: &Asked, endpoint: Endpoint) -> bool;
    /// The service that an endpoint answers for.
    fn asked(&self, answers: &Answers) -> Option<Endpoint>;
    /// It answers for itself from now on.
    fn forget(&self, answers: &Answers);
}

/// The endpoint for a new connection, each as likely as the others where `lot` is any number as likely as the others.
#[inline(always)]
pub fn connection(services: &impl Services, frontend: &Frontend, lot: u32) -> Option<Endpoint> {
    let balance = services.balance(frontend)?;
    let number = (u64::from(lot) * u64::from(balance.endpoints)) >> 32;
    services.endpoint(&Slot {
        frontend: *frontend,
        number: number as u32,
    })
}

/// The endpoint for a datagram of a socket that is not connected.
///
/// None, too, where it could not be remembered: the answer would come from somebody whom the socket never asked.
#[inline(always)]
pub fn datagram(
    tables: &(impl Services + Datagrams),
    socket: u64,
    frontend: &Frontend,
    lot: u32,
) -> Option<Endpoint> {
    let asked = Asked::new(socket, *frontend);
    if let Some(endpoint) = tables.chosen(&asked)
        && tables.serves(&Serving { frontend: *frontend, endpoint })
        // Where it was forgotten in one direction alone, both are remembered again below.
        && tables.asked(&Answers::new(socket, endpoint)) == Some(frontend.socket())
    {
        return Some(endpoint);
    }
    let Some(endpoint) = connection(tables, frontend, lot) else {
        // Somebody else, or an endpoint by its own address: who was asked last answers.
        let answers = Answers::new(socket, frontend.socket());
        if tables.asked(&answers).is_some() {
            tables.forget(&answers);
        }
        return None;
    };
    tables.choose(&asked, endpoint).then_some(endpoint)
}

/// Whom a socket takes for the sender of a datagram; none where that is the sender itself.
#[inline(always)]
pub fn answer(tables: &impl Datagrams, socket: u64, sender: Endpoint) -> Option<Endpoint> {
    tables.asked(&Answers::new(socket, sender))
}
