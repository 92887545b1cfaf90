//! The gate: the first packet of every connection and of every UDP flow passes here.
//!
//! A first packet waits until the other end outside is there. Then it is put back as it came, and finds a socket of ours,
//! as do those after it; or it is refused as the other end has refused us. So whoever connects inside learns what a
//! direct connection would have told, and none of this needs a TCP of our own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podnet_linux::MacAddr;
use podnet_linux::packet_socket::{PREFIX, PacketSocket};

use super::packet::{self, Arrival, Refusal};
use super::underlay::ROUTER_MAC;
use super::{tcp::Connections, udp::Sessions};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
const IP_AT: usize = PREFIX + ETHERNET;
/// The longest frame: what the kernel has joined to one packet, and its headers.
const LONGEST: usize = IP_AT + (64 << 10);

/// The way back into the underlay.
#[derive(Debug)]
pub(super) struct Gate {
    socket: PacketSocket,
    /// Of the link in the underlay.
    mac: MacAddr,
}

/// A first packet, kept until it is known what becomes of it.
#[derive(Debug)]
pub(super) struct Held(Vec<u8>);

impl Held {
    /// The IP packet.
    pub(super) fn packet(&self) -> &[u8] {
        &self.0[IP_AT..]
    }
}

impl Gate {
    /// The gate at the far end of the link whose Ethernet address is `mac`.
    pub(super) fn new(socket: PacketSocket, mac: MacAddr) -> Self {
        Gate { socket, mac }
    }

    /// Sends a first packet on its way.
    pub(super) fn put_back(&self, held: &Held) {
        self.put_frame_back(&held.0);
    }

    fn put_frame_back(&self, frame: &[u8]) {
        let mut frame = frame.to_vec();
        frame[PREFIX..PREFIX + 6].copy_from_slice(&self.mac.0);
        frame[PREFIX + 6..PREFIX + 12].copy_from_slice(&ROUTER_MAC.0);
        self.send(&frame);
    }

    /// Tells the sender of `packet` that it does not get outside.
    pub(super) fn refuse(&self, packet: &[u8], refusal: Refusal) {
        if let Some(answer) = packet::refuse(packet, refusal) {
            self.answer(&answer);
        }
    }

    fn answer(&self, packet: &[u8]) {
        let kind: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let mut frame = vec![0; PREFIX];
        frame.extend_from_slice(&self.mac.0);
        frame.extend_from_slice(&ROUTER_MAC.0);
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(packet);
        self.send(&frame);
    }

    /// A packet may be lost, here as anywhere; its sender sends it again.
    fn send(&self, frame: &[u8]) {
        if let Err(error) = self.socket.send(frame) {
            tracing::debug!(%error, "a packet is lost at the gate");
        }
    }
}

/// Handles what arrives, for as long as the gate stands. For a thread in the underlay: sockets for the inside are made
/// by it.
pub(super) fn serve(gate: &Gate, connections: &Arc<Connections>, sessions: &Arc<Sessions>) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = match gate.socket.receive(&mut buffer) {
            // The link goes up and down with the other end of the pair.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error()) => continue,
            received => received?,
        };
        let frame = &buffer[..length];
        let Some(ip) = frame.get(IP_AT..) else { continue };
        match packet::read(ip) {
            Arrival::Opening(flow) => connections.open(flow, Held(frame.to_vec())),
            Arrival::Datagram(flow) => sessions.open(flow, Held(frame.to_vec())),
            // Its first fragment decides; without that one the kernel forgets it.
            Arrival::Fragment => gate.put_frame_back(frame),
            Arrival::Stray(reset) => reset.iter().for_each(|reset| gate.answer(reset)),
            Arrival::Foreign => gate.refuse(ip, Refusal::Prohibited),
            Arrival::Ignored => {}
        }
    }
}

/// Where a flow's server is for this machine: its loopback, where the address for it is meant.
pub(super) fn target(server: SocketAddr, loopback: &[IpAddr]) -> SocketAddr {
    if !loopback.contains(&server.ip()) {
        return server;
    }
    let own: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(own, server.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_for_it_leads_to_the_machines_loopback() {
        let loopback = ["172.30.255.1".parse().unwrap(), "fd30::ff".parse().unwrap()];
        for (server, expected) in [
            ("172.30.255.1:80", "127.0.0.1:80"),
            ("[fd30::ff]:80", "[::1]:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            let server = server.parse().unwrap();
            assert_eq!(target(server, &loopback), expected.parse().unwrap());
        }
    }
}
