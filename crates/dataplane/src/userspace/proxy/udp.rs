//! Datagrams: each client has a socket of its own towards its endpoint, for as long as its session lasts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use podnet_linux::datagram::fragment_for_every_link;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::super::choice::Choice;
use super::super::sessions::Flow;
use super::super::table::Place;
use super::Proxy;

/// The longest datagram.
const LONGEST: usize = 64 << 10;
/// How many are taken from one socket before others have their turn.
const TURN: usize = 64;
/// Most buffers kept for later.
const MOST_SPARE: usize = 16;

/// Buffers for datagrams. Nobody has one while he waits, so that ten thousand sockets need a few only.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn with<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.0.lock().pop().unwrap_or_else(|| vec![0; LONGEST]);
        let done = work(&mut buffer);
        let mut spare = self.0.lock();
        if spare.len() < MOST_SPARE {
            spare.push(buffer);
        }
        done
    }
}

/// What carries a session: the socket towards its endpoint, and the task that brings its answers back.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) place: Place,
    socket: Arc<UdpSocket>,
    answers: JoinHandle<()>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Passes clients' datagrams on, for good.
pub(super) async fn receive(proxy: Arc<Proxy>, socket: Arc<UdpSocket>, server: SocketAddr, place: Place) {
    loop {
        if let Err(error) = socket.readable().await {
            tracing::warn!(%error, %place, "no more datagrams are received");
            return;
        }
        proxy.buffers.with(|buffer| {
            for _ in 0..TURN {
                match socket.try_recv_from(buffer) {
                    Ok((length, client)) => {
                        let flow = Flow { client, server };
                        pass_on(&proxy, &socket, flow, place, &buffer[..length]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    // What an earlier answer met; it is told once.
                    Err(error) => tracing::debug!(%error, %place, "an answer did not arrive"),
                }
            }
        });
        tokio::task::yield_now().await;
    }
}

fn pass_on(proxy: &Arc<Proxy>, from: &Arc<UdpSocket>, flow: Flow, place: Place, datagram: &[u8]) {
    let now = Instant::now();
    let known = proxy
        .sessions
        .lock()
        .asks(&flow, now)
        .map(|carrier| Arc::clone(&carrier.socket));
    let socket = match known {
        Some(socket) => socket,
        None => match begin(proxy, from, flow, place, now) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, %place, client = %flow.client, "no UDP session");
                return;
            }
        },
    };
    // Not by way of the runtime, for which a socket that is new can do nothing yet. A first failure may be what an earlier
    // datagram met.
    let socket = SockRef::from(&*socket);
    if let Err(error) = socket.send(datagram).or_else(|_| socket.send(datagram)) {
        tracing::debug!(%error, %place, client = %flow.client, "a datagram is lost");
    }
}

/// A socket towards the endpoint that a client gets, if it gets one.
fn begin(
    proxy: &Arc<Proxy>,
    from: &Arc<UdpSocket>,
    flow: Flow,
    place: Place,
    now: Instant,
) -> io::Result<Option<Arc<UdpSocket>>> {
    let Flow { client, server } = flow;
    // While the table changes a choice may be out of date at once.
    while let Choice::To(endpoint) = proxy.choose(place, client, server.ip(), &[], now) {
        let socket = Arc::new(connected(endpoint)?);
        let answers = tokio::spawn(answers(
            Arc::clone(proxy),
            Arc::downgrade(from),
            Arc::clone(&socket),
            flow,
            endpoint,
        ));
        let carrier = Carrier {
            place,
            socket: Arc::clone(&socket),
            answers,
        };
        if proxy.begin_session(flow, endpoint, carrier, now) {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn connected(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(endpoint)?;
    may_be_cut(&socket, endpoint)?;
    UdpSocket::from_std(socket)
}

/// What a datagram is too long for cuts it: its sender cannot hear of that from the proxy.
pub(super) fn may_be_cut(socket: impl AsFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?),
        SocketAddr::V6(_) => fragment_for_every_link(socket),
    }
}

/// Brings answers back, until the session ends or its endpoint refuses.
async fn answers(
    proxy: Arc<Proxy>,
    to: Weak<UdpSocket>,
    from: Arc<UdpSocket>,
    flow: Flow,
    endpoint: SocketAddr,
) {
    loop {
        if from.readable().await.is_err() {
            break;
        }
        let goes_on = proxy
            .buffers
            .with(|buffer| bring_back(&proxy, &to, &from, flow, endpoint, buffer));
        if !goes_on {
            break;
        }
        tokio::task::yield_now().await;
    }
    // The next datagram chooses anew.
    let gone = proxy.sessions.lock().end(&flow, endpoint);
    drop(gone);
}

fn bring_back(
    proxy: &Proxy,
    to: &Weak<UdpSocket>,
    from: &UdpSocket,
    flow: Flow,
    endpoint: SocketAddr,
    buffer: &mut [u8],
) -> bool {
    for _ in 0..TURN {
        let length = match from.try_recv(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) => {
                tracing::debug!(%error, %endpoint, "an endpoint refuses datagrams");
                return false;
            }
        };
        let is_its = proxy.sessions.lock().answers(&flow, endpoint, Instant::now());
        let Some(to) = to.upgrade().filter(|_| is_its) else {
            return false;
        };
        if let Err(error) = SockRef::from(&*to).send_to(&buffer[..length], &flow.client.into()) {
            tracing::debug!(%error, client = %flow.client, "an answer is lost");
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::super::table::Edit;
    use super::*;

    #[test]
    fn a_session_does_not_begin_to_an_endpoint_that_has_gone_since_it_was_chosen() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let proxy = Proxy::new().unwrap();
        let leads_to = |endpoint: &str| {
            let line = format!("port udp 10.96.0.1:53 default/dns/udp/53 0 random any {endpoint}~- same");
            let edit: Edit = line.parse().unwrap();
            let place = edit.place().unwrap();
            proxy.table.write().edit(edit);
            place
        };
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        let flow = Flow {
            client: socket("10.244.0.9:4000"),
            server: socket("10.96.0.1:53"),
        };
        let place = leads_to("127.0.0.1:9");
        let choice = proxy.choose(place, flow.client, flow.server.ip(), &[], Instant::now());
        assert_eq!(choice, Choice::To(socket("127.0.0.1:9")));
        let begin = |endpoint: SocketAddr| {
            let carrier = Carrier {
                place,
                socket: Arc::new(connected(endpoint).unwrap()),
                answers: tokio::spawn(std::future::pending()),
            };
            proxy.begin_session(flow, endpoint, carrier, Instant::now())
        };
        leads_to("127.0.0.2:9");
        assert!(!begin(socket("127.0.0.1:9")));
        assert!(proxy.sessions.lock().is_empty());
        assert!(begin(socket("127.0.0.2:9")));
        assert_eq!(proxy.sessions.lock().len(), 1);
    }
}
