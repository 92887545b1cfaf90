//! IPVS, the kernel's load balancer for connections, over generic netlink (include/uapi/linux/ip_vs.h).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_GENERIC};

use crate::netfilter::wire::{self, Attributes, HEADER, Reader, Received};

/// How often virtual services are listed at most until two lists agree.
const LISTS: usize = 16;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;

// The controller that knows families by name: GENL_ID_CTRL, CTRL_CMD_GETFAMILY and its attributes.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const NAME: &str = "IPVS";
const VERSION: u8 = 1;
/// Length of `struct genlmsghdr`.
const GENERIC: usize = 4;

// IPVS_CMD_*
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;

// IPVS_CMD_ATTR_*
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const TCP_TIMEOUT: u16 = 4;
const TCP_FIN_TIMEOUT: u16 = 5;
const UDP_TIMEOUT: u16 = 6;

// IPVS_SVC_ATTR_*
const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_MARK: u16 = 5;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;

// IPVS_DEST_ATTR_*
const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER: u16 = 5;
const DESTINATION_LOWER: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
const DESTINATION_FAMILY: u16 = 11;

/// IP_VS_CONN_F_MASQ: destinations are translated, and answers come back by here.
const MASQUERADE: u32 = 0;
/// IP_VS_SVC_F_PERSISTENT: a client stays.
const PERSISTENT: u32 = 1;
/// IP_VS_SVC_F_HASHED, which the kernel sets itself.
const HASHED: u32 = 2;

const INET: u16 = 2;
const INET6: u16 = 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// It has no IPVS.
    #[error("this kernel has no IPVS: load the module ip_vs, or choose another --dataplane")]
    Missing,
    /// The socket failed.
    #[error("cannot {what}: the generic netlink socket failed: {source}")]
    Socket {
        /// What was asked for.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl IpvsError {
    fn errno(&self) -> Option<i32> {
        match self {
            IpvsError::Refused { source, .. } => source.raw_os_error(),
            IpvsError::Missing | IpvsError::Socket { .. } => None,
        }
    }

    /// What was to be changed or removed is not there (ESRCH for services, ENOENT for destinations).
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(libc::ESRCH | libc::ENOENT))
    }

    /// The kernel cannot use what it was given, such as a destination that is a broadcast address.
    pub fn is_invalid(&self) -> bool {
        self.errno() == Some(libc::EINVAL)
    }

    /// What was to be added is there.
    pub fn is_there(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// What clients send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Virtual {
    /// A port of an address; the protocol's IP number.
    Address {
        /// The address.
        address: IpAddr,
        /// TCP 6, UDP 17, SCTP 132.
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// Whatever has a mark, of IPv6 or of IPv4.
    Mark {
        /// IPv6.
        six: bool,
        /// The mark, never 0.
        mark: u32,
    },
}

/// How a virtual service chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduling {
    /// `rr`, `wrr`, `lc`, `wlc`, `sh`, `mh`...
    pub scheduler: String,
    /// `IP_VS_SVC_F_SCHED*`: what else the scheduler is told.
    pub flags: u32,
    /// For how many seconds of idleness a client stays with its destination, if at all.
    pub stays: Option<u32>,
}

/// One that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Where it is.
    pub socket: SocketAddr,
    /// How often it is chosen compared with others; 0 for no new connections.
    pub weight: u32,
    /// Connections that are established.
    pub active: u32,
    /// Connections in any other state.
    pub inactive: u32,
}

/// A socket in the network namespace in which it was opened.
pub struct Ipvs {
    socket: Socket,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Ipvs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ipvs")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Ipvs {
    /// For the network namespace of the calling thread. A kernel that has IPVS as a module loads it for this.
    pub fn open() -> Result<Self, IpvsError> {
        let what = "open a generic netlink socket";
        let failed = |source| IpvsError::Socket {
            what: what.into(),
            source,
        };
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&NetlinkAddress::new(0, 0)).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        let receive = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(socket.as_fd(), receive, Some(PATIENCE))
            .map_err(|error| failed(error.into()))?;
        let mut ipvs = Ipvs {
            socket,
            family: CONTROLLER,
            sequence: 0,
            buffer: vec![0; 64 << 10],
        };
        ipvs.family = ipvs.number()?;
        Ok(ipvs)
    }

    /// The number by which this kernel knows IPVS.
    fn number(&mut self) -> Result<u16, IpvsError> {
        let mut number = None;
        let name = Attributes::new().text(FAMILY_NAME, NAME);
        let asked = self.exchange(GET_FAMILY, ACK, &name, "ask for IPVS", |message| {
            let found = attributes(&message).get(FAMILY_ID);
            number = found
                .and_then(|bytes| bytes.try_into().ok())
                .map(u16::from_ne_bytes);
        });
        match asked {
            Err(error) if error.is_not_found() => Err(IpvsError::Missing),
            other => other.and_then(|()| number.ok_or(IpvsError::Missing)),
        }
    }

    /// All virtual services, and how they choose: lists of them are taken until two agree, and what another list had is
    /// asked for by itself.
    pub fn services(&mut self) -> Result<BTreeMap<Virtual, Scheduling>, IpvsError> {
        let mut services = self.glance()?;
        let mut doubtful = BTreeSet::new();
        for _ in 0..LISTS {
            let again = self.glance()?;
            let is_same = again == services;
            let missing = services.keys().filter(|key| !again.contains_key(key));
            doubtful.extend(missing.copied());
            services = again;
            if is_same {
                break;
            }
        }
        for key in doubtful {
            if !services.contains_key(&key)
                && let Some(scheduling) = self.service(key)?
            {
                services.insert(key, scheduling);
            }
        }
        Ok(services)
    }

    /// How one chooses; nothing where it is not there.
    pub fn service(&mut self, service: Virtual) -> Result<Option<Scheduling>, IpvsError> {
        let mut found = None;
        let of = Attributes::new().nest(SERVICE, key(service));
        let asked = self.exchange(GET_SERVICE, ACK, &of, "ask for a virtual service", |message| {
            let service = attributes(&message).nested(SERVICE);
            found = service.and_then(read_service).map(|(_, scheduling)| scheduling);
        });
        match asked {
            Err(error) if error.is_not_found() => Ok(None),
            asked => asked.map(|()| found),
        }
    }

    /// The same, but some may be missing. The kernel lists the virtual services of all network namespaces by their number
    /// and goes on at a number (ip_vs_genl_dump_services): what another namespace adds or removes meanwhile makes it list
    /// some twice or none of some, and nothing tells of it.
    pub fn glance(&mut self) -> Result<BTreeMap<Virtual, Scheduling>, IpvsError> {
        let mut services = BTreeMap::new();
        let all = Attributes::new();
        self.exchange(GET_SERVICE, DUMP, &all, "list virtual services", |message| {
            let service = attributes(&message).nested(SERVICE);
            services.extend(service.and_then(read_service));
        })?;
        Ok(services)
    }

    /// The destinations of one.
    pub fn destinations(&mut self, service: Virtual) -> Result<Vec<Destination>, IpvsError> {
        let mut destinations = Vec::new();
        let of = Attributes::new().nest(SERVICE, key(service));
        let what = format!("list the destinations of {service}");
        self.exchange(GET_DESTINATION, DUMP, &of, &what, |message| {
            let destination = attributes(&message).nested(DESTINATION);
            destinations.extend(destination.and_then(read_destination));
        })?;
        Ok(destinations)
    }

    /// Adds one without destinations.
    pub fn add_service(&mut self, service: Virtual, scheduling: &Scheduling) -> Result<(), IpvsError> {
        self.put_service(NEW_SERVICE, "add", service, scheduling)
    }

    /// Has one choose otherwise.
    pub fn change_service(&mut self, service: Virtual, scheduling: &Scheduling) -> Result<(), IpvsError> {
        self.put_service(SET_SERVICE, "change", service, scheduling)
    }

    fn put_service(
        &mut self,
        command: u8,
        verb: &str,
        service: Virtual,
        scheduling: &Scheduling,
    ) -> Result<(), IpvsError> {
        let persistent = if scheduling.stays.is_some() { PERSISTENT } else { 0 };
        let mut flags = (scheduling.flags | persistent).to_ne_bytes().to_vec();
        // All flags are given.
        flags.extend_from_slice(&u32::MAX.to_ne_bytes());
        let netmask = if is_six(service) { 128 } else { u32::MAX };
        let attributes = key(service)
            .text(SERVICE_SCHEDULER, &scheduling.scheduler)
            .bytes(SERVICE_FLAGS, &flags)
            .bytes(SERVICE_TIMEOUT, &scheduling.stays.unwrap_or(0).to_ne_bytes())
            .bytes(SERVICE_NETMASK, &netmask.to_ne_bytes());
        let attributes = Attributes::new().nest(SERVICE, attributes);
        let what = format!("{verb} the virtual service {service}");
        self.exchange(command, ACK, &attributes, &what, |_| {})
    }

    /// Removes one with its destinations. Connections through it are dropped.
    pub fn delete_service(&mut self, service: Virtual) -> Result<(), IpvsError> {
        let attributes = Attributes::new().nest(SERVICE, key(service));
        let what = format!("remove the virtual service {service}");
        self.exchange(DELETE_SERVICE, ACK, &attributes, &what, |_| {})
    }

    /// Gives one a further destination.
    pub fn add_destination(
        &mut self,
        service: Virtual,
        socket: SocketAddr,
        weight: u32,
    ) -> Result<(), IpvsError> {
        self.put_destination(NEW_DESTINATION, "add", service, socket, Some(weight))
    }

    /// Changes the weight of a destination.
    pub fn change_destination(
        &mut self,
        service: Virtual,
        socket: SocketAddr,
        weight: u32,
    ) -> Result<(), IpvsError> {
        self.put_destination(SET_DESTINATION, "change", service, socket, Some(weight))
    }

    /// Removes a destination. Connections to it are dropped.
    pub fn delete_destination(&mut self, service: Virtual, socket: SocketAddr) -> Result<(), IpvsError> {
        self.put_destination(DELETE_DESTINATION, "remove", service, socket, None)
    }

    fn put_destination(
        &mut self,
        command: u8,
        verb: &str,
        service: Virtual,
        socket: SocketAddr,
        weight: Option<u32>,
    ) -> Result<(), IpvsError> {
        let mut destination = Attributes::new()
            .bytes(DESTINATION_ADDRESS, &octets(socket.ip()))
            .bytes(DESTINATION_PORT, &socket.port().to_be_bytes())
            .bytes(DESTINATION_FAMILY, &family(socket.ip().is_ipv6()).to_ne_bytes());
        if let Some(weight) = weight {
            destination = destination
                .bytes(DESTINATION_METHOD, &MASQUERADE.to_ne_bytes())
                .bytes(DESTINATION_WEIGHT, &weight.to_ne_bytes())
                .bytes(DESTINATION_UPPER, &[0; 4])
                .bytes(DESTINATION_LOWER, &[0; 4]);
        }
        let attributes = Attributes::new()
            .nest(SERVICE, key(service))
            .nest(DESTINATION, destination);
        let what = format!("{verb} the destination {socket} of {service}");
        self.exchange(command, ACK, &attributes, &what, |_| {})
    }

    /// After how many seconds of idleness an established TCP connection is forgotten.
    pub fn tcp_timeout(&mut self) -> Result<u32, IpvsError> {
        let mut seconds = None;
        let all = Attributes::new();
        self.exchange(GET_CONFIG, ACK, &all, "ask for timeouts", |message| {
            seconds = host_u32(attributes(&message), TCP_TIMEOUT);
        })?;
        seconds.ok_or_else(|| IpvsError::Refused {
            what: "ask for timeouts".into(),
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Sets it. Other timeouts stay.
    pub fn set_tcp_timeout(&mut self, seconds: u32) -> Result<(), IpvsError> {
        let attributes = Attributes::new()
            .bytes(TCP_TIMEOUT, &seconds.to_ne_bytes())
            .bytes(TCP_FIN_TIMEOUT, &[0; 4])
            .bytes(UDP_TIMEOUT, &[0; 4]);
        let what = format!("have TCP connections forgotten after {seconds} s of idleness");
        self.exchange(SET_CONFIG, ACK, &attributes, &what, |_| {})
    }

    fn exchange(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &Attributes,
        what: &str,
        mut entry: impl FnMut(Received<'_>),
    ) -> Result<(), IpvsError> {
        let failed = |source| IpvsError::Socket {
            what: what.into(),
            source,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message(self.family, command, REQUEST | flags, self.sequence, attributes);
        self.socket.send(&bytes, 0).map_err(failed)?;
        loop {
            let length = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed)?,
            };
            for message in wire::messages(&self.buffer[..length]) {
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    DONE | ERROR if message.errno() != 0 => {
                        return Err(IpvsError::Refused {
                            what: what.into(),
                            source: io::Error::from_raw_os_error(message.errno()),
                        });
                    }
                    DONE | ERROR => return Ok(()),
                    _ => entry(message),
                }
            }
        }
    }
}

impl std::fmt::Display for Virtual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Virtual::Address {
                address,
                protocol,
                port,
            } => write!(f, "{} protocol {protocol}", SocketAddr::new(address, port)),
            Virtual::Mark { six: false, mark } => write!(f, "IPv4 mark {mark:#x}"),
            Virtual::Mark { six: true, mark } => write!(f, "IPv6 mark {mark:#x}"),
        }
    }
}

fn is_six(service: Virtual) -> bool {
    match service {
        Virtual::Address { address, .. } => address.is_ipv6(),
        Virtual::Mark { six, .. } => six,
    }
}

fn family(six: bool) -> u16 {
    if six { INET6 } else { INET }
}

/// `union nf_inet_addr`.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
    }
}

fn read_address(octets: &[u8], family: u16) -> Option<IpAddr> {
    let octets: [u8; 16] = octets.try_into().ok()?;
    match family {
        INET => Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
        INET6 => Some(Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

fn key(service: Virtual) -> Attributes {
    let attributes = Attributes::new().bytes(SERVICE_FAMILY, &family(is_six(service)).to_ne_bytes());
    match service {
        Virtual::Address {
            address,
            protocol,
            port,
        } => attributes
            .bytes(SERVICE_PROTOCOL, &u16::from(protocol).to_ne_bytes())
            .bytes(SERVICE_ADDRESS, &octets(address))
            .bytes(SERVICE_PORT, &port.to_be_bytes()),
        Virtual::Mark { mark, .. } => attributes.bytes(SERVICE_MARK, &mark.to_ne_bytes()),
    }
}

fn message(kind: u16, command: u8, flags: u16, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).expect("a message is below 4 GiB");
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[command, VERSION, 0, 0]);
    bytes.extend_from_slice(attributes.as_slice());
    bytes
}

/// What follows `struct genlmsghdr`.
fn attributes<'a>(message: &Received<'a>) -> Reader<'a> {
    Reader::new(message.payload.get(GENERIC..).unwrap_or_default())
}

fn host_u16(reader: Reader<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_ne_bytes(reader.get(kind)?.try_into().ok()?))
}

fn host_u32(reader: Reader<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(reader.get(kind)?.get(..4)?.try_into().ok()?))
}

fn port(reader: Reader<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(reader.get(kind)?.try_into().ok()?))
}

fn read_service(reader: Reader<'_>) -> Option<(Virtual, Scheduling)> {
    let family = host_u16(reader, SERVICE_FAMILY)?;
    let service = match host_u32(reader, SERVICE_MARK) {
        Some(mark) if mark != 0 => Virtual::Mark {
            six: family == INET6,
            mark,
        },
        _ => Virtual::Address {
            address: read_address(reader.get(SERVICE_ADDRESS)?, family)?,
            protocol: u8::try_from(host_u16(reader, SERVICE_PROTOCOL)?).ok()?,
            port: port(reader, SERVICE_PORT)?,
        },
    };
    let flags = host_u32(reader, SERVICE_FLAGS)?;
    let timeout = host_u32(reader, SERVICE_TIMEOUT)?;
    Some((
        service,
        Scheduling {
            scheduler: reader.text(SERVICE_SCHEDULER)?,
            flags: flags & !(PERSISTENT | HASHED),
            stays: (flags & PERSISTENT != 0).then_some(timeout),
        },
    ))
}

fn read_destination(reader: Reader<'_>) -> Option<Destination> {
    let address = read_address(
        reader.get(DESTINATION_ADDRESS)?,
        host_u16(reader, DESTINATION_FAMILY)?,
    )?;
    Some(Destination {
        socket: SocketAddr::new(address, port(reader, DESTINATION_PORT)?),
        weight: host_u32(reader, DESTINATION_WEIGHT)?,
        active: host_u32(reader, DESTINATION_ACTIVE)?,
        inactive: host_u32(reader, DESTINATION_INACTIVE)?,
    })
}
