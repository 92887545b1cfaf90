//! Sockets on every address, IPv4 and IPv6 alike.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use podnet_linux::datagram;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, sockopt};
use tokio::net::TcpListener;

use super::stream::Transport;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Why a port cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {protocol} port {port}: {source}")]
pub(super) struct ListenError {
    protocol: &'static str,
    port: u16,
    source: io::Error,
}

impl ListenError {
    /// What to do about it.
    pub(super) fn help(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another process of this pod or node has the port: containers of a pod share one port space"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            _ if self.protocol == "SCTP" => {
                "this machine's kernel has no SCTP; load the module sctp, or leave --sctp"
            }
            _ => "choose another port",
        }
    }
}

/// A listening stream socket.
pub(super) fn stream(transport: Transport, port: u16) -> Result<TcpListener, ListenError> {
    let protocol = match transport {
        Transport::Tcp => ipproto::TCP,
        Transport::Sctp => ipproto::SCTP,
    };
    let listen = || {
        let (socket, _) = bound(SocketType::STREAM, protocol, port)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|source| ListenError {
        protocol: transport.name(),
        port,
        source,
    })
}

/// A datagram socket, and whether it has IPv6 (and can tell where datagrams were sent to).
pub(super) fn datagram(port: u16) -> Result<(OwnedFd, bool), ListenError> {
    let open = || {
        let (socket, ipv6) = bound(SocketType::DGRAM, ipproto::UDP, port)?;
        if ipv6 {
            datagram::want_destination(&socket)?;
        }
        Ok((socket, ipv6))
    };
    open().map_err(|source| ListenError {
        protocol: "UDP",
        port,
        source,
    })
}

/// One socket for both families; for IPv4 alone where IPv6 is switched off.
fn bound(kind: SocketType, protocol: Protocol, port: u16) -> io::Result<(OwnedFd, bool)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, ipv6) = match rustix::net::socket_with(AddressFamily::INET6, kind, flags, Some(protocol)) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            (socket, true)
        }
        Err(Errno::AFNOSUPPORT) => (
            rustix::net::socket_with(AddressFamily::INET, kind, flags, Some(protocol))?,
            false,
        ),
        Err(error) => return Err(error.into()),
    };
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    let address: SocketAddr = match ipv6 {
        true => (Ipv6Addr::UNSPECIFIED, port).into(),
        false => (Ipv4Addr::UNSPECIFIED, port).into(),
    };
    rustix::net::bind(&socket, &address)?;
    Ok((socket, ipv6))
}
