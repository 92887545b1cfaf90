//! Exec and attach: a process or a container on one side, a client on the other.
//!
//! Two tasks meet at a few channels. A *carrier* ([`spdy`], [`websocket`]) owns the connection and speaks its protocol;
//! a *session* ([`exec`], [`attach`]) owns the process. The channels are short, so that whoever is slow holds up the
//! other; when the client goes, its carrier drops the channels and the session ends, and with it the process.

mod attach;
mod exec;
mod flow;
mod spdy;
mod status;
mod terminal;
mod upgrade;
mod websocket;

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

pub(super) use upgrade::{Session, serve};

use super::request::StreamOptions;
use status::Outcome;

/// How long a client may take to open its streams: kubelet's default.
const STREAM_CREATION: Duration = Duration::from_secs(30);
/// How long a client may take to hang up after the end. Closing before it has read everything would make some clients
/// drop what they have not yet handed on.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a session says.
#[derive(Debug)]
enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last word.
    End(Outcome),
}

/// The size of the client's terminal, as it comes in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    #[serde(default)]
    width: u16,
    #[serde(default)]
    height: u16,
}

/// The session's ends of the channels.
struct SessionEnds {
    /// Closed when the client has no more.
    stdin: mpsc::Receiver<Bytes>,
    resize: mpsc::Receiver<Size>,
    /// Closed when the client has gone.
    output: mpsc::Sender<Output>,
}

/// The carrier's ends of the channels.
struct CarrierEnds {
    /// Taken away when the client has no more.
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<Size>,
    output: mpsc::Receiver<Output>,
}

fn channels(wanted: StreamOptions) -> (SessionEnds, CarrierEnds) {
    let (stdin_sender, stdin) = mpsc::channel(4);
    let (resize_sender, resize) = mpsc::channel(4);
    let (output, output_receiver) = mpsc::channel(4);
    let carrier = CarrierEnds {
        stdin: wanted.stdin.then_some(stdin_sender),
        resize: resize_sender,
        output: output_receiver,
    };
    (
        SessionEnds {
            stdin,
            resize,
            output,
        },
        carrier,
    )
}

/// Resolves when the peer of the connection has hung up, even while nobody reads what it sent before.
///
/// A carrier does not read while the process takes no input, so it would not see the end. Since unread bytes keep a
/// socket readable, readiness says nothing either; so the kernel is asked once a second.
async fn hung_up(connection: OwnedFd) {
    loop {
        let mut fds = [PollFd::new(&connection, PollFlags::RDHUP)];
        let asked = poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        );
        if asked.is_ok() && !fds[0].revents().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
