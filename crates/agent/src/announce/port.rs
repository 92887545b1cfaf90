//! One link on which addresses are announced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use podnet_core::NodeName;
use podnet_core::announce::{ALL_AGENTS, Announcer, Candidates, ETHERTYPE, Mac, Standing, solicited_node};
use podnet_linux::frame_socket::{FrameSocket, Frames};

use super::links::Usable;

const ARP: u16 = 0x0806;
/// No frame that is answered is longer.
const BUFFER: usize = 2048;
/// A link that has more than so many frames in store is left for a moment, so that none keeps the others waiting.
const AT_ONCE: usize = 256;

/// The sockets, and what is said through them.
#[derive(Debug)]
pub(super) struct Port {
    link: Usable,
    announcer: Announcer,
    sockets: [FrameSocket; 3],
    groups: Groups,
    /// Sending has failed, and was told.
    mute: bool,
}

impl Port {
    /// Opens them; why not is told.
    pub(super) fn open(now: Duration, me: NodeName, link: &Usable) -> Option<Self> {
        let open = || -> io::Result<[FrameSocket; 3]> {
            let heartbeats = FrameSocket::open(link.index, Frames::Of(ETHERTYPE))?;
            heartbeats.join(ALL_AGENTS.0)?;
            Ok([
                heartbeats,
                FrameSocket::open(link.index, Frames::Of(ARP))?,
                FrameSocket::open(link.index, Frames::NeighbourSolicitations)?,
            ])
        };
        match open() {
            Ok(sockets) => Some(Port {
                announcer: Announcer::new(now, me, Mac(link.mac.0)),
                link: link.clone(),
                sockets,
                groups: Groups::default(),
                mute: false,
            }),
            Err(error) => {
                tracing::warn!(link = link.name, %error, "cannot announce addresses; trying again");
                None
            }
        }
    }

    /// Whether it is still the same link.
    pub(super) fn is_of(&self, link: &Usable) -> bool {
        self.link == *link
    }

    pub(super) fn want(
        &mut self,
        now: Duration,
        wanted: Candidates,
        nodes: &Arc<BTreeMap<NodeName, IpAddr>>,
        standing: Standing,
    ) {
        self.announcer.want(now, wanted, Arc::clone(nodes), standing);
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.announcer.next()
    }

    pub(super) fn speaks_for(&self) -> Vec<IpAddr> {
        self.announcer.speaks_for().collect()
    }

    /// Takes in what has come, and sends what is due.
    pub(super) fn turn(&mut self, now: Duration) {
        let mut buffer = [0; BUFFER];
        for at in 0..self.sockets.len() {
            for _ in 0..AT_ONCE {
                match self.sockets[at].receive(&mut buffer) {
                    Ok(Some(length)) => {
                        let answer = self.announcer.received(now, &buffer[..length]);
                        answer.iter().for_each(|frame| self.send(frame));
                    }
                    Ok(None) => break,
                    // Once: the link went down. It is looked after soon.
                    Err(_) => break,
                }
            }
        }
        let frames = self.announcer.poll(now);
        let speaks_for: BTreeSet<IpAddr> = self.announcer.speaks_for().collect();
        self.groups.set(self.link.index, &speaks_for);
        frames.iter().for_each(|frame| self.send(frame));
    }

    /// Says goodbye.
    pub(super) fn leave(&mut self) {
        let farewell = self.announcer.leave();
        farewell.iter().for_each(|frame| self.send(frame));
    }

    fn send(&mut self, frame: &[u8]) {
        match self.sockets[0].send(frame) {
            Ok(()) => self.mute = false,
            Err(error) if !self.mute => {
                self.mute = true;
                tracing::warn!(link = self.link.name, %error, "cannot send; other nodes take over its addresses");
            }
            Err(_) => {}
        }
    }
}

/// The groups in which hosts ask for IPv6 addresses (RFC 4861, section 7.2.1). Being in them opens the link's filter, and
/// switches that look after groups (RFC 4541) pass on what is asked.
#[derive(Debug, Default)]
struct Groups {
    joined: BTreeMap<Ipv6Addr, UdpSocket>,
    /// Those of which it is said that they cannot be joined.
    refused: BTreeSet<Ipv6Addr>,
}

impl Groups {
    fn set(&mut self, link: u32, addresses: &BTreeSet<IpAddr>) {
        let groups: BTreeSet<Ipv6Addr> = addresses
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(address) => Some(solicited_node(*address)),
                IpAddr::V4(_) => None,
            })
            .collect();
        self.joined.retain(|group, _| groups.contains(group));
        self.refused.retain(|group| groups.contains(group));
        for group in groups {
            if self.joined.contains_key(&group) {
                continue;
            }
            // A socket each: the kernel limits how many groups one has.
            let joined = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
                .and_then(|socket| socket.join_multicast_v6(&group, link).map(|()| socket));
            match joined {
                Ok(socket) => {
                    self.refused.remove(&group);
                    self.joined.insert(group, socket);
                }
                Err(error) => {
                    if self.refused.insert(group) {
                        tracing::warn!(%group, %error, "cannot join a group; trying again");
                    }
                }
            }
        }
    }
}
