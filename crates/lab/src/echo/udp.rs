//! UDP: a datagram of JSON for every datagram, from the address that was asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use podnet_linux::datagram::{self, Route};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::reply::{Content, Identity, Reply, show};

/// Serves until the process ends.
pub(super) async fn serve((socket, ipv6): (OwnedFd, bool), port: u16, identity: Arc<Identity>) {
    let socket = match UdpSocket::from_std(socket.into()) {
        Ok(socket) => socket,
        Err(error) => return eprintln!("cannot serve UDP port {port}: {error}"),
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (count, route) = match receive(&socket, ipv6, &mut buffer).await {
            Ok(received) => received,
            // Out of memory, say; an answer that could not be delivered is not told here.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let received = String::from_utf8_lossy(&buffer[..count])
            .trim_end_matches(['\r', '\n'])
            .to_owned();
        let reply = Reply {
            identity: &identity,
            client: show(route.peer),
            server: show(SocketAddr::new(route.local, port)),
            protocol: "UDP",
            content: Content::Data { received },
        };
        let line = reply.line();
        let sent = match ipv6 {
            true => {
                socket
                    .async_io(Interest::WRITABLE, || datagram::answer(&socket, &line, &route))
                    .await
            }
            false => socket.send_to(&line, route.peer).await,
        };
        // Whoever cannot be reached concerns nobody else.
        drop(sent);
    }
}

async fn receive(socket: &UdpSocket, ipv6: bool, buffer: &mut [u8]) -> io::Result<(usize, Route)> {
    if ipv6 {
        return socket
            .async_io(Interest::READABLE, || datagram::receive(socket, buffer))
            .await;
    }
    let (count, peer) = socket.recv_from(buffer).await?;
    Ok((
        count,
        Route {
            peer,
            local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            link: 0,
        },
    ))
}
