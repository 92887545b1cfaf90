//! Bytes from one TCP connection to another, moved by the kernel.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, SpliceFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// Most pipes kept for later.
const MOST_SPARE: usize = 256;
/// A peer that is gone without a word is noticed after this and some probes.
const KEEPALIVE: Duration = Duration::from_secs(120);

struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
}

/// Pipes, which are empty. A connection has one only while bytes are on their way, so that one that is idle costs two
/// descriptors and not six.
#[derive(Default)]
pub(super) struct Pipes(Mutex<Vec<Pipe>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.lock().pop() {
            return Ok(pipe);
        }
        let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Pipe { output, input })
    }

    fn give(&self, empty: Pipe) {
        let mut spare = self.0.lock();
        if spare.len() < MOST_SPARE {
            spare.push(empty);
        }
    }
}

/// Moves bytes both ways until both ends have said that there are no more. When one breaks, so does the other.
pub(super) async fn relay(client: TcpStream, endpoint: TcpStream, pipes: &Pipes) -> io::Result<()> {
    for stream in [&client, &endpoint] {
        stream.set_nodelay(true)?;
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    }
    let ended = {
        let there = one_way(&client, &endpoint, pipes);
        let back = one_way(&endpoint, &client, pipes);
        let both = async { tokio::try_join!(there, back).map(drop) };
        tokio::select! {
            // What had arrived when one broke goes on first.
            biased;
            ended = both => ended,
            error = broken(&client) => Err(error),
            error = broken(&endpoint) => Err(error),
        }
    };
    if ended.is_err() {
        reset(client);
        reset(endpoint);
    }
    ended
}

/// Ends a connection so that its peer learns it was no orderly end.
pub(super) fn reset(stream: TcpStream) {
    // Closing without it is all that is left.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

async fn one_way(from: &TcpStream, to: &TcpStream, pipes: &Pipes) -> io::Result<()> {
    loop {
        from.readable().await?;
        let pipe = pipes.take()?;
        let more = drain(from, to, &pipe).await?;
        pipes.give(pipe);
        if !more {
            return SockRef::from(to).shutdown(Shutdown::Write);
        }
    }
}

/// Moves what is there. Returns whether there may be more later; the pipe is empty then.
async fn drain(from: &TcpStream, to: &TcpStream, pipe: &Pipe) -> io::Result<bool> {
    loop {
        let mut held = match from.try_io(Interest::READABLE, || splice(from, &pipe.input, CHUNK)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Ok(0) => return Ok(false),
            moved => moved?,
        };
        while held > 0 {
            let moved = to.async_io(Interest::WRITABLE, || splice(&pipe.output, to, held));
            held -= moved.await?;
        }
    }
}

/// The pipe is empty when it is filled, and is emptied then: what blocks is always the socket.
fn splice(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(from, None, to, None, most, flags)?)
}

/// Waits until a connection is broken while nobody reads from it or writes to it.
async fn broken(stream: &TcpStream) -> io::Error {
    if let Err(error) = stream.ready(Interest::ERROR).await {
        return error;
    }
    let error = stream.take_error().ok().flatten();
    // Whoever read or wrote has had the error itself.
    error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}
