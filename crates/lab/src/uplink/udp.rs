//! UDP: a session is a pair of sockets for one client and one server, which ends when it has been idle.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podnet_linux::datagram::fragment_for_every_link;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::gate::{self, Gate, Held};
use super::packet::{self, Flow, Refusal};
use super::underlay::transparent;

/// A question that was asked once, as names are: the kernel's own tracking has the same limit.
const IDLE_QUESTION: Duration = Duration::from_secs(30);
/// A session in which both speak (RFC 4787, REQ-5: no less than two minutes).
const IDLE_CONVERSATION: Duration = Duration::from_secs(120);
/// The longest datagram.
const LONGEST: usize = 64 << 10;

/// The sessions that are not at an end.
#[derive(Debug)]
pub(super) struct Sessions {
    gate: Arc<Gate>,
    loopback: Vec<IpAddr>,
    runtime: tokio::runtime::Handle,
    flows: Mutex<HashSet<Flow>>,
    /// Most of them at once.
    most: usize,
}

impl Sessions {
    /// None yet, and never more than `most`. `loopback` are the addresses that stand for this machine's loopback.
    pub(super) fn new(gate: Arc<Gate>, loopback: Vec<IpAddr>, most: usize) -> Arc<Self> {
        Arc::new(Sessions {
            gate,
            loopback,
            runtime: tokio::runtime::Handle::current(),
            flows: Mutex::default(),
            most,
        })
    }

    /// To be told of every datagram that has found no socket. For a thread in the underlay.
    pub(super) fn open(self: &Arc<Self>, flow: Flow, held: Held) {
        let mut flows = self.flows.lock();
        if flows.contains(&flow) {
            // It was under way when the session began.
            return self.gate.put_back(&held);
        }
        if flows.len() >= self.most {
            tracing::warn!(client = %flow.client, "no room for a further UDP session");
            return self.gate.refuse(held.packet(), Refusal::Prohibited);
        }
        match inside(&flow) {
            Ok(socket) => {
                flows.insert(flow);
                self.runtime.spawn(Arc::clone(self).session(flow, held, socket));
            }
            Err(error) => {
                tracing::warn!(%error, client = %flow.client, server = %flow.server, "no UDP session")
            }
        }
    }

    async fn session(self: Arc<Self>, flow: Flow, held: Held, inside: std::net::UdpSocket) {
        let quote = packet::quote(held.packet()).to_vec();
        let ended = match self.pair(&flow, inside).await {
            Ok(pair) => {
                self.gate.put_back(&held);
                drop(held);
                pair.relay(Heard::patience, |refusal| self.gate.refuse(&quote, refusal))
                    .await
            }
            Err(error) => {
                if let Some(refusal) = Refusal::of(&error) {
                    self.gate.refuse(&quote, refusal);
                }
                Err(error)
            }
        };
        self.flows.lock().remove(&flow);
        if let Err(error) = ended {
            tracing::debug!(%error, client = %flow.client, server = %flow.server, "UDP session ends");
        }
    }

    async fn pair(&self, flow: &Flow, inside: std::net::UdpSocket) -> io::Result<Pair> {
        let target = gate::target(flow.server, &self.loopback);
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let outside = UdpSocket::bind((any, 0)).await?;
        outside.connect(target).await?;
        Ok(Pair {
            client: flow.client,
            inside: UdpSocket::from_std(inside)?,
            outside,
        })
    }
}

/// The socket that has the server's address, for the client alone.
fn inside(flow: &Flow) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(flow.server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    transparent(&socket, flow.server)?;
    // Other clients of the server have sockets with the same address.
    socket.set_reuse_address(true)?;
    socket.bind(&flow.server.into())?;
    socket.connect(&flow.client.into())?;
    if flow.server.is_ipv6() {
        fragment_for_every_link(&socket)?;
    }
    Ok(socket.into())
}

/// The two ends of a session.
struct Pair {
    client: SocketAddr,
    inside: UdpSocket,
    outside: UdpSocket,
}

impl Pair {
    /// Passes datagrams on until both have been silent for as long as `patience` says. Refusals outside are passed on; one inside ends the
    /// session, so that the server's next datagram is refused, too.
    async fn relay(&self, patience: impl Fn(Heard) -> Duration, refuse: impl Fn(Refusal)) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST];
        let mut asked = vec![0; LONGEST];
        let mut heard = Heard::default();
        let silence = tokio::time::sleep(patience(heard));
        let mut silence = std::pin::pin!(silence);
        loop {
            let sent = tokio::select! {
                received = self.inside.recv_from(&mut asked) => {
                    let (length, from) = received?;
                    // Between its binding and its connecting the socket was open to all clients.
                    if (from.ip(), from.port()) != (self.client.ip(), self.client.port()) {
                        continue;
                    }
                    heard.asked += 1;
                    self.outside.send(&asked[..length]).await
                }
                received = self.outside.recv(&mut buffer) => match received {
                    Ok(length) => {
                        heard.answered += 1;
                        self.inside.send(&buffer[..length]).await
                    }
                    Err(error) => Err(error),
                },
                () = &mut silence => return Ok(()),
            };
            silence.as_mut().reset(Instant::now() + patience(heard));
            if let Err(error) = sent {
                tracing::debug!(%error, client = %self.client, "a datagram is lost");
                Refusal::of(&error).into_iter().for_each(&refuse);
            }
        }
    }
}

/// How many datagrams went each way.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    asked: u64,
    answered: u64,
}

impl Heard {
    /// How long a silence ends the session.
    fn patience(self) -> Duration {
        if self.asked > 1 && self.answered > 0 {
            IDLE_CONVERSATION
        } else {
            IDLE_QUESTION
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_may_be_silent_for_longer_than_a_question() {
        let patience = |asked, answered| Heard { asked, answered }.patience();
        assert_eq!(patience(0, 0), IDLE_QUESTION);
        assert_eq!(patience(1, 1), IDLE_QUESTION);
        assert_eq!(patience(5, 0), IDLE_QUESTION);
        assert_eq!(patience(2, 1), IDLE_CONVERSATION);
    }

    #[tokio::test]
    async fn a_session_ends_when_it_has_been_idle() {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let bound = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (inside, outside) = (bound(), bound());
        for socket in [&inside, &outside] {
            socket.set_nonblocking(true).unwrap();
        }
        let pair = Pair {
            client: client.local_addr().unwrap(),
            inside: UdpSocket::from_std(inside).unwrap(),
            outside: UdpSocket::from_std(outside).unwrap(),
        };
        pair.relay(|_| Duration::ZERO, |_| ()).await.unwrap();
    }
}
