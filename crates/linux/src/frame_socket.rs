//! A packet socket for one kind of frames on one link, as they are on the wire. It does not block.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::packet_socket::{bind, checked, raw};

/// Which frames to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// Those of an EtherType.
    Of(u16),
    /// Those in which an IPv6 host asks for its neighbour (RFC 4861, section 4.3): the kernel passes no other on.
    NeighbourSolicitations,
}

/// The socket. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    link: u32,
}

const ETH_P_IPV6: u16 = libc::ETH_P_IPV6 as u16;

/// Offsets in a frame: the IPv6 header's next header, and the type of what follows that header.
const NEXT_HEADER: u32 = 14 + 6;
const ICMPV6_TYPE: u32 = 14 + 40;
const ICMPV6: u32 = 58;
const SOLICITATION: u32 = 135;

impl FrameSocket {
    /// Opens one on the link with this index, in the network namespace of the calling thread.
    pub fn open(link: u32, frames: Frames) -> io::Result<Self> {
        let socket = FrameSocket { fd: raw()?, link };
        let ethertype = match frames {
            Frames::Of(ethertype) => ethertype,
            Frames::NeighbourSolicitations => {
                socket.pass_solicitations_only()?;
                ETH_P_IPV6
            }
        };
        bind(&socket.fd, link, ethertype)?;
        rustix::io::ioctl_fionbio(&socket.fd, true)?;
        Ok(socket)
    }

    /// A classic BPF program: length of what passes, or nothing.
    fn pass_solicitations_only(&self) -> io::Result<()> {
        let instruction = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let end = libc::BPF_RET | libc::BPF_K;
        let mut program = [
            instruction(load, 0, 0, NEXT_HEADER),
            instruction(equal, 0, 3, ICMPV6),
            instruction(load, 0, 0, ICMPV6_TYPE),
            instruction(equal, 0, 1, SOLICITATION),
            instruction(end, 0, 0, u32::MAX),
            instruction(end, 0, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: program.len() as libc::c_ushort,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program that the option's value points to, whose length is beside it.
        unsafe { self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter) }
    }

    /// Has the link pass on frames to a group, which it may else filter.
    pub fn join(&self, group: [u8; 6]) -> io::Result<()> {
        // SAFETY: packet_mreq is plain data for which zero is valid, and what the option takes.
        unsafe {
            let mut request: libc::packet_mreq = mem::zeroed();
            request.mr_ifindex = self.link as libc::c_int;
            request.mr_type = libc::PACKET_MR_MULTICAST as libc::c_ushort;
            request.mr_alen = group.len() as libc::c_ushort;
            request.mr_address[..group.len()].copy_from_slice(&group);
            self.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
        }
    }

    /// # Safety
    /// `value` is what the option takes.
    unsafe fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the value outlives the call, and its size is given; that it is the right one is the caller's promise.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        checked(result as isize).map(drop)
    }

    /// The length of the next frame that has come, if any. One that is longer than `buffer` is cut.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.fd, frame)
            .map(drop)
            .map_err(io::Error::from)
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::netlink::{Netlink, NewLink};
    use crate::ns::{Kind, Namespace};
    use crate::probe;

    #[test]
    fn only_the_frames_that_were_asked_for_come() {
        let (here, there) = (
            Namespace::create(Kind::Net).unwrap(),
            Namespace::create(Kind::Net).unwrap(),
        );
        let pair = NewLink::veth("near", "far", Some(there.as_fd()));
        Netlink::open_in(&here).unwrap().request(pair.create()).unwrap();
        let index = |namespace: &Namespace, name: &str| {
            let mut netlink = Netlink::open_in(namespace).unwrap();
            let link = netlink.link(name).unwrap().unwrap();
            netlink.request(link.change().up(true).apply()).unwrap();
            link.index
        };
        let (near, far) = (index(&here, "near"), index(&there, "far"));
        let open = |frames| there.run(|| FrameSocket::open(far, frames).unwrap()).unwrap();
        let ours = open(Frames::Of(0x88b5));
        ours.join([3, 0, 0, 0, 0, 1]).unwrap();
        let solicitations = open(Frames::NeighbourSolicitations);
        let sender = here
            .run(|| FrameSocket::open(near, Frames::Of(0x88b5)).unwrap())
            .unwrap();

        let frame = [
            &[3, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x88, 0xb5][..],
            b"to the group",
        ]
        .concat();
        let mut buffer = [0; 2000];
        // A link passes nothing on until it has noticed that its other end is up.
        let came = (0..100).find_map(|_| {
            sender.send(&frame).unwrap();
            probe::wait(&[ours.as_fd()], Some(Duration::from_millis(100))).unwrap();
            ours.receive(&mut buffer).unwrap()
        });
        assert_eq!(buffer[..came.expect("the frame")], frame);
        here.run(|| {
            let script = "ip addr add 2001:db8::1/64 dev near nodad";
            let done = Command::new("sh").args(["-c", script]).status().unwrap();
            assert!(done.success());
            let asker = UdpSocket::bind("[2001:db8::1]:0").unwrap();
            asker.send_to(b"somebody", "[2001:db8::2]:7").unwrap();
        })
        .unwrap();

        let next = |socket: &FrameSocket| {
            probe::wait(&[socket.as_fd()], Some(Duration::from_secs(10))).unwrap();
            let mut buffer = [0; 2000];
            let length = socket.receive(&mut buffer).unwrap().expect("a frame");
            buffer[..length].to_vec()
        };
        // Router solicitations and reports of groups have been there, too.
        loop {
            let frame = next(&solicitations);
            assert_eq!((frame[20], frame[54]), (58, 135));
            if frame[62..78] == [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2] {
                break;
            }
        }
    }
}
