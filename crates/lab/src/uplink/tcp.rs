//! TCP connections: one inside, one outside, and bytes that the kernel moves from one to the other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, SpliceFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

use super::flows::{Flows, Id, Opening};
use super::gate::{self, Gate, Held};
use super::packet::{Flow, Refusal};

/// A client that does not go on after its first packet was put back; the kernel gives up on it a little earlier.
const HANDSHAKE: Duration = Duration::from_secs(90);
/// A peer that is gone without a word (a pod that was deleted) is noticed after this and some probes.
const KEEPALIVE: Duration = Duration::from_secs(120);
/// Most bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// The connections that are not at an end.
#[derive(Debug)]
pub(super) struct Connections {
    gate: Arc<Gate>,
    loopback: Vec<IpAddr>,
    runtime: tokio::runtime::Handle,
    flows: Mutex<Flows<TcpStream>>,
}

impl Connections {
    /// None yet, and never more than `most`. `loopback` are the addresses that stand for this machine's loopback.
    pub(super) fn new(gate: Arc<Gate>, loopback: Vec<IpAddr>, most: usize) -> Arc<Self> {
        Arc::new(Connections {
            gate,
            loopback,
            runtime: tokio::runtime::Handle::current(),
            flows: Mutex::new(Flows::new(most)),
        })
    }

    /// To be told of every packet that opens a connection.
    pub(super) fn open(self: &Arc<Self>, flow: Flow, held: Held) {
        let opening = self.flows.lock().open(flow);
        match opening {
            Opening::New(id) => drop(self.runtime.spawn(Arc::clone(self).connect(flow, id, held))),
            Opening::Again => {}
            // The kernel knows whether it is sent again or the client begins anew.
            Opening::Known => self.gate.put_back(&held),
            Opening::TooMany => {
                tracing::warn!(client = %flow.client, "no room for a further TCP connection");
                self.gate.refuse(held.packet(), Refusal::Prohibited);
            }
        }
    }

    async fn connect(self: Arc<Self>, flow: Flow, id: Id, held: Held) {
        let target = gate::target(flow.server, &self.loopback);
        let stream = match TcpStream::connect(target).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, client = %flow.client, server = %flow.server, "no connection");
                self.flows.lock().end(&flow, id);
                // Silence outside stays silence.
                if let Some(refusal) = refusal(&error, target) {
                    self.gate.refuse(held.packet(), refusal);
                }
                return;
            }
        };
        self.flows.lock().connected(flow, id, stream);
        self.gate.put_back(&held);
        tokio::time::sleep(HANDSHAKE).await;
        self.flows.lock().expire(&flow, id);
    }

    /// Accepts what was let in, for good.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        loop {
            let inside = match listener.accept().await {
                Ok((inside, _)) => inside,
                Err(error) => {
                    // The connection has gone, or there are too many of them: later ones may be well.
                    tracing::warn!(%error, "a connection is not accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            if let Err(error) = self.begin(inside) {
                tracing::debug!(%error, "a connection ends as it begins");
            }
        }
    }

    fn begin(self: &Arc<Self>, inside: TcpStream) -> io::Result<()> {
        let flow = Flow {
            client: plain(inside.peer_addr()?),
            server: plain(inside.local_addr()?),
        };
        let Some((id, outside)) = self.flows.lock().relay(&flow) else {
            return reset(&inside);
        };
        tracing::debug!(client = %flow.client, server = %flow.server, "connected");
        let connections = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(error) = relay(&inside, &outside).await {
                tracing::debug!(%error, client = %flow.client, server = %flow.server, "connection broken");
                // Whoever is left learns that it was no orderly end.
                let _ = (reset(&inside), reset(&outside));
            }
            connections.flows.lock().end(&flow, id);
        });
        Ok(())
    }
}

/// What the client is told of a connection that did not come about.
fn refusal(error: &io::Error, target: SocketAddr) -> Option<Refusal> {
    let refusal = Refusal::of(error);
    if refusal.is_none() && error.kind() != io::ErrorKind::TimedOut {
        // It is we who cannot: no descriptors, no ports, no such family.
        tracing::warn!(%error, %target, "cannot connect");
        return Some(Refusal::Prohibited);
    }
    refusal
}

/// An address without what only this machine's links give it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// Has the kernel reset the connection when it is closed.
fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Moves bytes both ways until both ends have said that there are no more, or one breaks.
async fn relay(inside: &TcpStream, outside: &TcpStream) -> io::Result<()> {
    for stream in [inside, outside] {
        stream.set_nodelay(true)?;
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    }
    let both = async { tokio::try_join!(one_way(inside, outside), one_way(outside, inside)).map(drop) };
    tokio::select! {
        // What has arrived before an end broke is passed on first.
        biased;
        done = both => done,
        broken = broken(inside) => Err(broken),
        broken = broken(outside) => Err(broken),
    }
}

/// Moves bytes one way until `from` says that there are no more, and says so to `to`.
async fn one_way(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    loop {
        let mut held = from
            .async_io(Interest::READABLE, || splice(from, &input, CHUNK))
            .await?;
        if held == 0 {
            return SockRef::from(to).shutdown(std::net::Shutdown::Write);
        }
        while held > 0 {
            held -= to
                .async_io(Interest::WRITABLE, || splice(&output, to, held))
                .await?;
        }
    }
}

/// The pipe is empty when it is filled, and is emptied then: what blocks is always the socket.
fn splice(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(from, None, to, None, most, flags)?)
}

/// Waits until a connection is broken: no one may be reading from it, or writing to it, that would notice.
async fn broken(stream: &TcpStream) -> io::Error {
    if let Err(error) = stream.ready(Interest::ERROR).await {
        return error;
    }
    match stream.take_error() {
        // The reader or writer has had it already, and has yet to say so.
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
        Ok(Some(error)) | Err(error) => error,
    }
}
