//! A command in a container, with pipes or a terminal.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::super::request::ExecOptions;
use super::super::{Container, Process, Stdio};
use super::status::Outcome;
use super::terminal::Terminal;
use super::{Output, SessionEnds, Size};

const BLOCK: usize = 32 * 1024;
/// After the command has ended, what it left running may hold its output open for ever; only so long a silence is
/// waited for.
const LINGER: Duration = Duration::from_millis(500);
/// A client with a terminal tells its size right after it opened its streams. A command that starts before would see
/// a terminal of no size.
const FIRST_SIZE: Duration = Duration::from_millis(100);

/// Runs the command for the client, and says how it ended.
pub(super) async fn run(container: Container, asked: ExecOptions, ends: SessionEnds) {
    let output = ends.output.clone();
    tokio::select! {
        outcome = outcome(container, asked, ends) => {
            // An error means that the client has gone, which nobody needs to be told.
            let _ = output.send(Output::End(outcome)).await;
        }
        // Dropping the process kills it.
        () = output.closed() => {}
    }
}

async fn outcome(container: Container, asked: ExecOptions, ends: SessionEnds) -> Outcome {
    let ran = if asked.streams.tty {
        on_terminal(container, asked, ends).await
    } else {
        on_pipes(container, asked, ends).await
    };
    ran.map_or_else(Outcome::Failed, Outcome::Exited)
}

async fn on_pipes(container: Container, asked: ExecOptions, mut ends: SessionEnds) -> Result<i32, String> {
    let (ours, theirs) = pipes(&asked).map_err(|error| format!("cannot make a pipe: {error}"))?;
    let process = container.exec.exec(asked.command, theirs).await?;
    let (ended, end) = watch::channel(false);
    let feed = async {
        if let Some(stdin) = ours.stdin {
            feed(stdin, &mut ends.stdin).await;
        }
    };
    let drain = async {
        tokio::join!(
            drain(ours.stdout, &end, &ends.output, Output::Stdout),
            drain(ours.stderr, &end, &ends.output, Output::Stderr),
        )
    };
    accompany(process, ended, feed, drain).await
}

async fn on_terminal(container: Container, asked: ExecOptions, mut ends: SessionEnds) -> Result<i32, String> {
    let (terminal, stdio) = terminal().map_err(|error| format!("cannot make a terminal: {error}"))?;
    if let Ok(Some(size)) = tokio::time::timeout(FIRST_SIZE, ends.resize.recv()).await {
        resize(&terminal, size);
    }
    let process = container.exec.exec(asked.command, stdio).await?;
    let (ended, end) = watch::channel(false);
    let typing = async {
        while let Some(bytes) = ends.stdin.recv().await {
            if terminal.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let resizing = async {
        while let Some(size) = ends.resize.recv().await {
            resize(&terminal, size);
        }
    };
    let drain = async {
        let mut buffer = vec![0; BLOCK];
        while let read @ 1.. = until_silent(terminal.read(&mut buffer), &end).await {
            let bytes = Bytes::copy_from_slice(&buffer[..read]);
            if ends.output.send(Output::Stdout(bytes)).await.is_err() {
                return;
            }
        }
    };
    accompany(process, ended, async { tokio::join!(typing, resizing) }, drain).await
}

/// Feeds and drains the process until it has ended and its output has been read.
async fn accompany<T, U>(
    mut process: Box<dyn Process>,
    ended: watch::Sender<bool>,
    feed: impl Future<Output = T>,
    drain: impl Future<Output = U>,
) -> Result<i32, String> {
    let end = async {
        let code = process.wait().await;
        ended.send_replace(true);
        code
    };
    let feed = async {
        feed.await;
        pending().await
    };
    tokio::select! {
        (code, _) = async { tokio::join!(end, drain) } => code,
        never = feed => never,
    }
}

/// Writes what the client sends, then closes the pipe: the command sees the end of its input.
async fn feed(mut pipe: pipe::Sender, stdin: &mut mpsc::Receiver<Bytes>) {
    while let Some(bytes) = stdin.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(pipe);
    // The command has closed its input: the client is not left waiting.
    while stdin.recv().await.is_some() {}
}

async fn drain(
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
async fn until_silent(read: impl Future<Output = io::Result<usize>>, end: &watch::Receiver<bool>) -> usize {
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

fn resize(terminal: &Terminal, size: Size) {
    if let Err(error) = terminal.resize(size) {
        tracing::debug!(%error, ?size, "a terminal does not take this size");
    }
}

struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

fn pipes(asked: &ExecOptions) -> io::Result<(Pipes, Stdio)> {
    let pair = |wanted: bool| -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        if !wanted {
            return Ok((None, None));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Some(read), Some(write)))
    };
    let (stdin, our_stdin) = pair(asked.streams.stdin)?;
    let (our_stdout, stdout) = pair(asked.streams.stdout)?;
    let (our_stderr, stderr) = pair(asked.streams.stderr)?;
    let ours = Pipes {
        stdin: our_stdin.map(pipe::Sender::from_owned_fd).transpose()?,
        stdout: our_stdout.map(pipe::Receiver::from_owned_fd).transpose()?,
        stderr: our_stderr.map(pipe::Receiver::from_owned_fd).transpose()?,
    };
    Ok((
        ours,
        Stdio {
            stdin,
            stdout,
            stderr,
            tty: false,
        },
    ))
}

fn terminal() -> io::Result<(Terminal, Stdio)> {
    let (terminal, slave) = Terminal::open()?;
    let (stdin, stdout) = (slave.try_clone()?, slave.try_clone()?);
    Ok((
        terminal,
        Stdio {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(slave),
            tty: true,
        },
    ))
}
