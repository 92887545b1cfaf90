//! Datagrams with the address they were sent to, so that the answer leaves from it.
//!
//! A host with several addresses, or one reached through a service address, must answer from the address that
//! was asked; the kernel would otherwise choose by route.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// Space for one control message with an `in6_pktinfo`, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Who sent a datagram, and to which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The sender.
    pub peer: SocketAddr,
    /// The address it was sent to.
    pub local: IpAddr,
    /// The link it came by; matters for link-local addresses only.
    pub link: u32,
}

/// Asks for the destination address of every datagram that an IPv6 (or dual-stack) socket receives.
pub fn want_destination(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int on this stack frame, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVPKTINFO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has an IPv6 socket cut datagrams into fragments that pass every link (RFC 8200, section 5), without asking the way
/// first: routers do not cut, and a datagram that was lost for being too long is not sent again.
pub fn fragment_for_every_link(socket: impl AsFd) -> io::Result<()> {
    let minimum_mtu: libc::c_int = 1280;
    // SAFETY: the option's value is an int on this stack frame, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU,
            (&raw const minimum_mtu).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives one datagram on an IPv6 (or dual-stack) socket. IPv4 addresses are given as such.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Route)> {
    let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let mut control = Control([0; 64]);
    let mut data = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which zero is valid; every pointer put into it outlives the call and has
    // its length beside it. After the call the kernel has filled name, and control as far as msg_controllen.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        let count = libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let peer = address(&name.assume_init());
        let info = destination(&message).ok_or_else(|| io::Error::other("no destination with a datagram"))?;
        let local = plain(Ipv6Addr::from(info.ipi6_addr.s6_addr));
        Ok((
            count as usize,
            Route {
                peer,
                local,
                link: info.ipi6_ifindex as u32,
            },
        ))
    }
}

/// Answers a datagram from the address it was sent to.
pub fn answer(socket: impl AsFd, bytes: &[u8], route: &Route) -> io::Result<usize> {
    let mut name = to_name(route);
    let mut control = Control([0; 64]);
    let mut data = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let info = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr {
            s6_addr: mapped(route.local).octets(),
        },
        ipi6_ifindex: if is_link_local(route.local) {
            route.link as _
        } else {
            0
        },
    };
    // SAFETY: as in `receive`; the control buffer is larger than CMSG_SPACE of an in6_pktinfo (40 bytes), so that
    // CMSG_FIRSTHDR and CMSG_DATA stay inside it; sendmsg only reads.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_name = (&raw mut name).cast();
        message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IPV6;
        (*header).cmsg_type = libc::IPV6_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<libc::in6_pktinfo>() as u32) as _;
        libc::CMSG_DATA(header)
            .cast::<libc::in6_pktinfo>()
            .write_unaligned(info);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let count = libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags);
        if count < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(count as usize)
        }
    }
}

/// # Safety
/// `message` is as recvmsg left it.
unsafe fn destination(message: &libc::msghdr) -> Option<libc::in6_pktinfo> {
    // SAFETY: the caller's promise; the macros stay inside msg_controllen, and a message of this level and type
    // carries an in6_pktinfo.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
                return Some(
                    libc::CMSG_DATA(header)
                        .cast::<libc::in6_pktinfo>()
                        .read_unaligned(),
                );
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn address(name: &libc::sockaddr_in6) -> SocketAddr {
    let (ip, port) = (
        Ipv6Addr::from(name.sin6_addr.s6_addr),
        u16::from_be(name.sin6_port),
    );
    match ip.to_ipv4_mapped() {
        Some(ip) => SocketAddr::from((ip, port)),
        None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
    }
}

fn to_name(route: &Route) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: route.peer.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr {
            s6_addr: mapped(route.peer.ip()).octets(),
        },
        sin6_scope_id: if is_link_local(route.peer.ip()) {
            route.link
        } else {
            0
        },
    }
}

fn plain(ip: Ipv6Addr) -> IpAddr {
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn the_answer_leaves_from_the_address_that_was_asked() {
        let server = UdpSocket::bind("[::]:0").unwrap();
        want_destination(&server).unwrap();
        let port = server.local_addr().unwrap().port();
        for (bind, to) in [
            ("127.0.0.1:0", "127.0.0.77"),
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
        ] {
            let client = UdpSocket::bind(bind).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let to: IpAddr = to.parse().unwrap();
            client.send_to(b"question", (to, port)).unwrap();
            let mut buffer = [0; 100];
            let (count, route) = loop {
                match receive(&server, &mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    received => break received.unwrap(),
                }
            };
            assert_eq!(
                (&buffer[..count], route.local, route.peer),
                (&b"question"[..], to, client.local_addr().unwrap())
            );
            answer(&server, b"reply", &route).unwrap();
            let (count, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..count], from),
                (&b"reply"[..], SocketAddr::new(to, port))
            );
        }
    }
}
