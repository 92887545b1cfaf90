//! A packet socket on a link: whole frames, with what the kernel knows of each that does not stand in it.
//!
//! Between links that are memory only, a frame's checksum may still be due and a frame may be several in one. The kernel
//! tells so in front of the frame (`struct virtio_net_hdr`), and believes the same when the frame is put back.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Length of `struct virtio_net_hdr`, which stands in front of every frame. All zeros: the frame is complete.
pub const PREFIX: usize = 10;

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

/// The socket. It belongs to the network namespace in which it was opened, and blocks.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens one on the link with this index, in the network namespace of the calling thread.
    pub fn open(link: u32) -> io::Result<Self> {
        let socket = PacketSocket { fd: raw()? };
        socket.want_prefix()?;
        bind(&socket.fd, link, ETH_P_ALL)?;
        Ok(socket)
    }

    fn want_prefix(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is an int on this stack frame, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        checked(result as isize).map(drop)
    }

    /// Waits for a frame that came by the link; its length with the prefix. A frame longer than `buffer` is cut.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Sends a frame, prefix first.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.fd, frame)
            .map(drop)
            .map_err(io::Error::from)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket that receives nothing before it is bound.
pub(crate) fn raw() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes plain values; a descriptor that it returns is ours alone.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Has it receive what comes by a link with that EtherType.
pub(crate) fn bind(fd: &OwnedFd, link: u32, ethertype: u16) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data for which zero is valid; bind only reads it, and its size is given.
    let result = unsafe {
        let mut address: libc::sockaddr_ll = mem::zeroed();
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = link as libc::c_int;
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    checked(result as isize).map(drop)
}

pub(crate) fn checked(result: isize) -> io::Result<isize> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::netlink::{Netlink, NewLink};
    use crate::ns::{Kind, Namespace};

    #[test]
    fn a_frame_that_is_taken_from_a_link_and_put_back_is_believed() {
        let (here, there) = (
            Namespace::create(Kind::Net).unwrap(),
            Namespace::create(Kind::Net).unwrap(),
        );
        let script = "ip addr add 10.0.0.1/24 dev near && ip link set near up && ip link set lo up && \
                      ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev near";
        let mut netlink = Netlink::open_in(&here).unwrap();
        let pair = NewLink::veth("near", "far", Some(there.as_fd()));
        netlink.request(pair.create()).unwrap();
        here.run(|| {
            let done = std::process::Command::new("sh")
                .args(["-c", script])
                .status()
                .unwrap();
            assert!(done.success());
        })
        .unwrap();
        let socket = there
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                let far = netlink.link("far").unwrap().unwrap();
                netlink.request(far.change().up(true).apply()).unwrap();
                PacketSocket::open(far.index).unwrap()
            })
            .unwrap();
        let sender = here.run(|| UdpSocket::bind("10.0.0.1:0").unwrap()).unwrap();

        let mut frame = [0; 2000];
        let length = loop {
            // Again and again: a link passes nothing on until it has noticed that its other end is up.
            sender.send_to(b"to and fro", "10.0.0.2:7").unwrap();
            let soon = Some(std::time::Duration::from_millis(100));
            crate::probe::wait(&[socket.as_fd()], soon).unwrap();
            if rustix::io::ioctl_fionread(&socket.fd).unwrap() == 0 {
                continue;
            }
            let length = socket.receive(&mut frame).unwrap();
            // Others come, too: neighbour discovery and its like.
            if frame[..length].ends_with(b"to and fro") {
                break length;
            }
        };
        // Back to where it came from: addresses swapped, which keeps the checksum, ports left alone but for the mirror.
        let frame = &mut frame[..length];
        let ethernet = PREFIX;
        let (ip, udp) = (ethernet + 14, ethernet + 34);
        for (first, second, size) in [
            (ethernet, ethernet + 6, 6),
            (ip + 12, ip + 16, 4),
            (udp, udp + 2, 2),
        ] {
            for at in 0..size {
                frame.swap(first + at, second + at);
            }
        }
        socket.send(frame).unwrap();
        let mut buffer = [0; 100];
        sender
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let (count, from) = sender.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..count], from.to_string().as_str()),
            (&b"to and fro"[..], "10.0.0.2:7")
        );
    }
}
