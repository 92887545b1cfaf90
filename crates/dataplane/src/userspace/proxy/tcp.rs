//! Connections: accepted, given an endpoint, relayed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use super::super::choice::Choice;
use super::super::table::Place;
use super::Proxy;
use super::relay::{relay, reset};

/// How many endpoints are tried: nothing has been sent yet when one refuses.
const ATTEMPTS: usize = 4;
/// How long an endpoint may be silent before another one is tried.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection, for as long as it lasts.
struct Open {
    proxy: Arc<Proxy>,
    address: IpAddr,
}

impl Open {
    /// Counts one more; none when there are too many.
    fn count(proxy: &Arc<Proxy>, address: IpAddr) -> Option<Self> {
        let before = proxy.connections.fetch_add(1, Ordering::Relaxed);
        proxy.uses.lock().begin(address);
        let open = Open {
            proxy: Arc::clone(proxy),
            address,
        };
        (before < proxy.limits.connections).then_some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let released = self.proxy.uses.lock().end(self.address);
        self.proxy.connections.fetch_sub(1, Ordering::Relaxed);
        if released {
            self.proxy.released.notify_one();
        }
    }
}

/// Accepts clients of one place, for good.
pub(super) async fn accept(proxy: Arc<Proxy>, listener: Arc<TcpListener>, place: Place) {
    loop {
        match listener.accept().await {
            Ok((client, peer)) => begin(&proxy, client, peer, place),
            Err(error) => {
                // It has gone again, or there are no descriptors: later ones may be well.
                tracing::warn!(%error, %place, "a connection is not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn begin(proxy: &Arc<Proxy>, client: TcpStream, peer: SocketAddr, place: Place) {
    let Ok(local) = client.local_addr() else {
        return;
    };
    let Some(open) = Open::count(proxy, local.ip()) else {
        let most = proxy.limits.connections;
        tracing::warn!(%place, %peer, "there are {most} connections already: this one is reset");
        return reset(client);
    };
    tokio::spawn(async move {
        let proxy = Arc::clone(&open.proxy);
        let Some(endpoint) = reach(&proxy, local, peer, place).await else {
            return reset(client);
        };
        if let Err(error) = relay(client, endpoint, &proxy.pipes).await {
            tracing::debug!(%error, %place, %peer, "connection broken");
        }
        drop(open);
    });
}

/// Connects to an endpoint; to another one when the first refuses or is silent.
async fn reach(proxy: &Proxy, local: SocketAddr, peer: SocketAddr, place: Place) -> Option<TcpStream> {
    let mut failed: Vec<SocketAddr> = Vec::new();
    while failed.len() < ATTEMPTS {
        let now = Instant::now();
        let Choice::To(endpoint) = proxy.choose(place, peer, local.ip(), &failed, now) else {
            return None;
        };
        match tokio::time::timeout(SILENCE, TcpStream::connect(endpoint)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, %endpoint, %place, "an endpoint cannot be reached"),
            Err(_) => {
                let error = io::Error::from(io::ErrorKind::TimedOut);
                tracing::debug!(%error, %endpoint, %place, "an endpoint cannot be reached");
            }
        }
        failed.push(endpoint);
    }
    None
}
