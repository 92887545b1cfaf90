//! One proxy after another: how one of another build takes the place of the one that is there.
//!
//! The old one lets go of the socket and hands over the gate, and serves as before until the new one has its table. Then it
//! closes what listens, the new one opens its own, and the old one ends with its last connection. Until then all addresses
//! lead to the gate.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_linux::fdpass;
use podnet_linux::ns::Namespace;
use tokio::sync::Notify;

use super::super::claim::Claim;
use super::super::conversation::{greeting, is_greeting};

/// How long one that is there may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// The longest line that is read.
const LONGEST_LINE: usize = 1000;

/// What comes from another proxy.
pub(super) struct Inheritance {
    /// What is behind its gate.
    pub(super) namespace: Namespace,
    pub(super) predecessor: Predecessor,
}

/// The proxy that was there before.
pub(super) struct Predecessor {
    stream: UnixStream,
    is_closed: bool,
}

impl Predecessor {
    /// Whether it serves whoever is new.
    pub(super) fn serves(&self) -> bool {
        !self.is_closed
    }

    /// Has it serve nobody new. `bereaved` is told when it has ended.
    pub(super) fn close(&mut self, bereaved: &Arc<Notify>) {
        if std::mem::replace(&mut self.is_closed, true) {
            return;
        }
        // One that does not answer has ended, which is told all the same.
        if let Err(error) = writeln!(self.stream, "close").and_then(|()| line(&mut self.stream)) {
            tracing::warn!(%error, "the proxy before this one ended early");
        }
        let (stream, tell) = (self.stream.try_clone(), Arc::clone(bereaved));
        let wait = move || {
            if let Ok(mut stream) = stream {
                let _ = stream.set_read_timeout(None);
                while stream.read(&mut [0]).is_ok_and(|length| length > 0) {}
            }
            tell.notify_one();
        };
        if let Err(error) = std::thread::Builder::new().name("predecessor".into()).spawn(wait) {
            tracing::warn!(%error, "nobody waits for the proxy before this one");
            bereaved.notify_one();
        }
    }
}

/// The right to serve `socket`, and what the proxy that had it leaves. One that is ending is waited for; one of the same
/// build stays.
pub(super) fn claim(socket: &Path, identity: &str) -> io::Result<(Claim, Option<Inheritance>)> {
    let until = Instant::now() + PATIENCE;
    let mut inheritance = None;
    loop {
        if let Some(claim) = Claim::take(socket)? {
            return Ok((claim, inheritance));
        }
        if inheritance.is_none()
            && let Ok(mut stream) = UnixStream::connect(socket)
        {
            stream.set_read_timeout(Some(PATIENCE))?;
            match line(&mut stream) {
                Ok(said) if said == greeting(identity) => {
                    let why = format!("a proxy serves {} already", socket.display());
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
                }
                // One that does neither is ending.
                Ok(said) if is_greeting(&said) => inheritance = inherit(stream).unwrap_or_default(),
                _ => {}
            }
        }
        if Instant::now() > until {
            let why = format!("the proxy at {} does not let go of it", socket.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Nothing when the other one ends by itself.
fn inherit(mut stream: UnixStream) -> io::Result<Option<Inheritance>> {
    writeln!(stream, "yield")?;
    let message = fdpass::receive(&stream)?;
    let gate = message.and_then(|mut message| message.descriptors.pop());
    Ok(gate.map(|gate| Inheritance {
        namespace: gate.into(),
        predecessor: Predecessor {
            stream,
            is_closed: false,
        },
    }))
}

/// One line, and not a byte more: descriptors may come with those that follow.
fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            _ if line.len() == LONGEST_LINE => return Err(io::ErrorKind::InvalidData.into()),
            [byte] => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}
