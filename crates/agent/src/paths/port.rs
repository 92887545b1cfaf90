//! The sockets at one of this node's addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use podnet_core::path::{Prober, Transmit, wire};
use podnet_linux::probe::{ProbeSocket, Refusal};

/// Larger than any datagram.
const BUFFER: usize = 64 << 10;

/// One that answers, and two that ask.
#[derive(Debug)]
pub(super) struct Port {
    /// Its answers have no checksum: they tell of the probe, and are not to be lost where checksums are.
    answering: ProbeSocket,
    checksum: ProbeSocket,
    bare: ProbeSocket,
}

impl Port {
    pub(super) fn open(address: IpAddr) -> io::Result<Port> {
        Ok(Port {
            answering: ProbeSocket::bind(SocketAddr::new(address, wire::PORT), false)?,
            checksum: ProbeSocket::bind(SocketAddr::new(address, 0), true)?,
            bare: ProbeSocket::bind(SocketAddr::new(address, 0), false)?,
        })
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.answering.as_fd(), self.checksum.as_fd(), self.bare.as_fd()]
    }

    pub(super) fn send(&self, transmit: &Transmit) -> io::Result<bool> {
        let socket = if transmit.checksum {
            &self.checksum
        } else {
            &self.bare
        };
        socket.send(&transmit.bytes, SocketAddr::new(transmit.to, wire::PORT))
    }

    /// Answers peers, and nobody else.
    pub(super) fn answer(&self, peers: &BTreeSet<IpAddr>) {
        let mut buffer = vec![0; BUFFER];
        while let Some((length, from)) = self.answering.receive(&mut buffer) {
            if let Some(reply) = wire::answer(&buffer[..length]).filter(|_| peers.contains(&from.ip())) {
                // A peer that does not hear it asks again.
                let _ = self.answering.send(&reply, from);
            }
        }
        while self.answering.refused(&mut buffer).is_some() {}
    }

    /// Takes in what came back; whether anything did.
    pub(super) fn collect(&self, now: Duration, prober: &mut Prober) -> bool {
        let mut buffer = vec![0; BUFFER];
        let mut came = false;
        for socket in [&self.checksum, &self.bare] {
            while let Some((length, from)) = socket.receive(&mut buffer) {
                prober.received(now, from.ip(), &buffer[..length]);
                came = true;
            }
            while let Some((length, refusal)) = socket.refused(&mut buffer) {
                came = true;
                match refusal {
                    Refusal::NoListener => prober.refused(now, &buffer[..length]),
                    Refusal::TooBig => prober.too_big(now, &buffer[..length]),
                    Refusal::Other => {}
                }
            }
        }
        came
    }
}
