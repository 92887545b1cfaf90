//! A command in a container, with pipes or a terminal.

use std::future::pending;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::super::request::ExecOptions;
use super::super::{Container, Process, Stdio};
use super::flow::{BLOCK, drain, feed, input_pipe, operate, output_pipe, resize_to, until_silent};
use super::status::Outcome;
use super::terminal::Terminal;
use super::{Output, SessionEnds};

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
    let ptmx = container.exec.terminals().await;
    let (terminal, stdio) =
        terminal(ptmx.as_deref()).map_err(|error| format!("cannot make a terminal: {error}"))?;
    if let Ok(Some(size)) = tokio::time::timeout(FIRST_SIZE, ends.resize.recv()).await {
        resize_to(&terminal, size);
    }
    let process = container.exec.exec(asked.command, stdio).await?;
    let (ended, end) = watch::channel(false);
    let feed = operate(&terminal, &mut ends.stdin, &mut ends.resize);
    let drain = async {
        let mut buffer = vec![0; BLOCK];
        while let read @ 1.. = until_silent(terminal.read(&mut buffer), &end).await {
            let bytes = Bytes::copy_from_slice(&buffer[..read]);
            if ends.output.send(Output::Stdout(bytes)).await.is_err() {
                return;
            }
        }
    };
    accompany(process, ended, feed, drain).await
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

/// Our ends of the pipes.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

fn pipes(asked: &ExecOptions) -> io::Result<(Pipes, Stdio)> {
    let (our_stdin, stdin) = input_pipe(asked.streams.stdin)?;
    let (our_stdout, stdout) = output_pipe(asked.streams.stdout)?;
    let (our_stderr, stderr) = output_pipe(asked.streams.stderr)?;
    let ours = Pipes {
        stdin: our_stdin,
        stdout: our_stdout,
        stderr: our_stderr,
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

fn terminal(ptmx: Option<&Path>) -> io::Result<(Terminal, Stdio)> {
    let (terminal, slave) = Terminal::open(ptmx)?;
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
