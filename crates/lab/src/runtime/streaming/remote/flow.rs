//! What exec and attach share: moving bytes between the client's channels and descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::terminal::Terminal;
use super::{Output, Size};

/// What is read at once.
pub(super) const BLOCK: usize = 32 * 1024;
/// After a process has ended, what it left running may hold its output open for ever; only so long a silence is
/// waited for.
const LINGER: Duration = Duration::from_millis(500);

/// A pipe for a process to read from: our end and its end.
pub(super) fn input_pipe(wanted: bool) -> io::Result<(Option<pipe::Sender>, Option<OwnedFd>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Some(pipe::Sender::from_owned_fd(write)?), Some(read)))
}

/// A pipe for a process to write to: our end and its end.
pub(super) fn output_pipe(wanted: bool) -> io::Result<(Option<pipe::Receiver>, Option<OwnedFd>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Some(pipe::Receiver::from_owned_fd(read)?), Some(write)))
}

/// Writes what the client sends, then closes the pipe: the command sees the end of its input.
pub(super) async fn feed(mut pipe: pipe::Sender, stdin: &mut mpsc::Receiver<Bytes>) {
    while let Some(bytes) = stdin.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(pipe);
    // The command has closed its input: the client is not left waiting.
    while stdin.recv().await.is_some() {}
}

/// Passes on what comes out of the pipe, until its end.
pub(super) async fn drain(
    pipe: Option<pipe::Receiver>,
    end: &watch::Receiver<bool>,
    output: &mpsc::Sender<Output>,
    kind: fn(Bytes) -> Output,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(BLOCK);
        if until_silent(pipe.read_buf(&mut buffer), end).await == 0 {
            return;
        }
        if output.send(kind(buffer.split().freeze())).await.is_err() {
            return;
        }
    }
}

/// What `read` reads; 0 also when the command has ended and nothing has come since for a while.
pub(super) async fn until_silent(
    read: impl Future<Output = io::Result<usize>>,
    end: &watch::Receiver<bool>,
) -> usize {
    let mut end = end.clone();
    let silence = async {
        let _ = end.wait_for(|ended| *ended).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        read = read => read.unwrap_or(0),
        () = silence => 0,
    }
}

/// Types what the client sends, and follows its size.
pub(super) async fn operate(
    terminal: &Terminal,
    stdin: &mut mpsc::Receiver<Bytes>,
    resize: &mut mpsc::Receiver<Size>,
) {
    let typing = async {
        while let Some(bytes) = stdin.recv().await {
            if terminal.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let resizing = async {
        while let Some(size) = resize.recv().await {
            resize_to(terminal, size);
        }
    };
    tokio::join!(typing, resizing);
}

/// Gives the terminal the client's size.
pub(super) fn resize_to(terminal: &Terminal, size: Size) {
    if let Err(error) = terminal.resize(size) {
        tracing::debug!(%error, ?size, "a terminal does not take this size");
    }
}
