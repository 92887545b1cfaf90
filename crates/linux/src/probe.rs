//! Datagrams that find out what a path does to packets: never fragmented, with or without a UDP checksum, and with the
//! errors that come back for them.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

const SO_NO_CHECK: libc::c_int = 11;
const UDP_NO_CHECK6_TX: libc::c_int = 101;
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// Packets are as large as the link allows, whatever was heard of the path.
const PMTUDISC_PROBE: libc::c_int = 3;

/// Space for an `sock_extended_err` with the address of who sent it.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// What came back for a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its destination is there, and nobody listens.
    NoListener,
    /// It is too big for this machine's link or one on the way.
    TooBig,
    /// Something else.
    Other,
}

/// A UDP socket for probes. It does not block.
#[derive(Debug)]
pub struct ProbeSocket {
    socket: UdpSocket,
}

impl ProbeSocket {
    /// A socket at that address, in the network namespace of the calling thread. Without `checksum` its datagrams have
    /// none; with it they have one that the kernel leaves to the device if that offers it. Datagrams without are received
    /// by either.
    pub fn bind(local: SocketAddr, checksum: bool) -> io::Result<Self> {
        let probe = ProbeSocket {
            socket: UdpSocket::bind(local)?,
        };
        probe.socket.set_nonblocking(true)?;
        let mut options = Vec::new();
        if local.is_ipv4() {
            options.extend([
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PMTUDISC_PROBE),
                (libc::IPPROTO_IP, libc::IP_RECVERR, 1),
                (libc::SOL_SOCKET, SO_NO_CHECK, i32::from(!checksum)),
            ]);
        } else {
            options.extend([
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, PMTUDISC_PROBE),
                (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
                (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
                (libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, 1),
                (libc::IPPROTO_UDP, UDP_NO_CHECK6_TX, i32::from(!checksum)),
            ]);
        }
        options
            .into_iter()
            .try_for_each(|(level, name, value)| set(probe.as_fd(), level, name, value))?;
        Ok(probe)
    }

    /// Sends a datagram; false when it is too big for this machine's link.
    pub fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<bool> {
        // An error that came back for another datagram would be told of now.
        drop(self.socket.take_error());
        match self.socket.send_to(bytes, to) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next datagram that has come, if any.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        // Errors that came back are told once each; `refused` has more of them.
        const ERRORS: usize = 64;
        for _ in 0..ERRORS {
            match self.socket.recv_from(buffer) {
                Ok(received) => return Some(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {}
            }
        }
        None
    }

    /// The next datagram that something came back for: how much of it is in `buffer`, and what came back.
    pub fn refused(&self, buffer: &mut [u8]) -> Option<(usize, Refusal)> {
        let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
        let mut control = Control([0; 128]);
        let mut data = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: msghdr is plain data for which zero is valid; every pointer put into it outlives the call and has its
        // length beside it.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = name.as_mut_ptr().cast();
            message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            message.msg_iov = &raw mut data;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control.0.len() as _;
            let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
            let count = libc::recvmsg(self.as_fd().as_raw_fd(), &raw mut message, flags);
            if count < 0 {
                return None;
            }
            let refusal =
                extended_error(&message).map_or(Refusal::Other, |error| match error.ee_errno as i32 {
                    libc::ECONNREFUSED => Refusal::NoListener,
                    libc::EMSGSIZE => Refusal::TooBig,
                    _ => Refusal::Other,
                });
            Some((count as usize, refusal))
        }
    }

    /// Where it is bound.
    pub fn local(&self) -> io::Result<IpAddr> {
        Ok(self.socket.local_addr()?.ip())
    }
}

impl AsFd for ProbeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of the descriptors can be read, or has an error, or the time is over.
pub fn wait(descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let mut descriptors: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
        .collect();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut descriptors, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int on this stack frame, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// # Safety
/// `message` is as recvmsg left it.
unsafe fn extended_error(message: &libc::msghdr) -> Option<libc::sock_extended_err> {
    // SAFETY: the caller's promise; the macros stay inside msg_controllen, and a message of these levels and types
    // carries a sock_extended_err.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let kind = ((*header).cmsg_level, (*header).cmsg_type);
            if kind == (libc::IPPROTO_IP, libc::IP_RECVERR)
                || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            {
                return Some(
                    libc::CMSG_DATA(header)
                        .cast::<libc::sock_extended_err>()
                        .read_unaligned(),
                );
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::netlink::{LinkChange, Netlink};
    use crate::ns::{Kind, Namespace};

    #[track_caller]
    fn soon<T>(mut found: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(Instant::now() < end, "nothing came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn datagrams_arrive_with_and_without_checksum_and_refusals_come_back() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink.request(LinkChange::named("lo").up(true).apply()).unwrap();
                netlink
                    .request(LinkChange::named("lo").mtu(2000).apply())
                    .unwrap();
                for local in ["127.0.0.1", "::1"] {
                    let local: IpAddr = local.parse().unwrap();
                    let server = ProbeSocket::bind((local, 7000).into(), false).unwrap();
                    let mut buffer = [0; 3000];
                    for checksum in [true, false] {
                        let client = ProbeSocket::bind((local, 0).into(), checksum).unwrap();
                        assert_eq!(client.local().unwrap(), local);
                        assert!(client.send(b"probe", (local, 7000).into()).unwrap());
                        let (length, from) = soon(|| server.receive(&mut buffer));
                        assert_eq!(&buffer[..length], b"probe");
                        assert!(server.send(b"reply", from).unwrap());
                        assert_eq!(soon(|| client.receive(&mut buffer)).0, 5);
                        assert!(!client.send(&[0; 2000], (local, 7000).into()).unwrap());
                        while client.refused(&mut buffer).is_some() {}

                        if local.is_ipv6() && !checksum {
                            // Without a checksum nobody can say whose it is, and IPv6 answers nothing.
                            continue;
                        }
                        assert!(client.send(b"nobody", (local, 7001).into()).unwrap());
                        let (length, refusal) = soon(|| client.refused(&mut buffer));
                        assert_eq!(
                            (&buffer[..length], refusal),
                            (&b"nobody"[..], Refusal::NoListener)
                        );
                        // The error does not keep what comes next from coming.
                        assert!(client.send(b"again", (local, 7000).into()).unwrap());
                        soon(|| server.receive(&mut buffer));
                    }
                }
            })
            .unwrap();
    }
}
