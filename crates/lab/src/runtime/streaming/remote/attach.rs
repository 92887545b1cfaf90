//! Attach: what a container's own process writes from now on, and its input.

use std::future::pending;
use std::io;

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::super::request::StreamOptions;
use super::super::{Attached, Container};
use super::flow::{drain, feed, operate, output_pipe};
use super::status::Outcome;
use super::terminal::Terminal;
use super::{Output, SessionEnds, Size};

/// Connects the client with the container until it ends or the client goes.
pub(super) async fn run(container: Container, streams: StreamOptions, ends: SessionEnds) {
    let output = ends.output.clone();
    let had_input = streams.stdin;
    let (exec, once) = (container.exec.clone(), container.stdin_once);
    tokio::select! {
        outcome = outcome(container, streams, ends) => {
            let _ = output.send(Output::End(outcome)).await;
        }
        () = output.closed() => {}
    }
    // Also when the client broke off: nobody else will ever end this input.
    if had_input
        && once
        && let Err(error) = exec.close_stdin().await
    {
        tracing::debug!(%error, "the input of a container could not be ended");
    }
}

async fn outcome(container: Container, streams: StreamOptions, mut ends: SessionEnds) -> Outcome {
    let connected = async {
        let pipes = (output_pipe(streams.stdout), output_pipe(streams.stderr));
        let ((stdout, their_stdout), (stderr, their_stderr)) =
            (pipes.0.map_err(no_pipe)?, pipes.1.map_err(no_pipe)?);
        let Attached { stdin, tty } = container.exec.attach(their_stdout, their_stderr).await?;
        let input = stdin.map(|stdin| Input::new(stdin, tty)).transpose();
        Ok::<_, String>((
            stdout,
            stderr,
            input.map_err(|error| format!("cannot use its input: {error}"))?,
        ))
    };
    let (stdout, stderr, input) = match connected.await {
        Ok(connected) => connected,
        Err(why) => return Outcome::Failed(why),
    };
    let feed = async {
        give(input, &container, &mut ends.stdin, &mut ends.resize).await;
        pending().await
    };
    let end = container.finished.clone();
    let drains = async {
        tokio::join!(
            drain(stdout, &end, &ends.output, Output::Stdout),
            drain(stderr, &end, &ends.output, Output::Stderr),
            ended(container.finished.clone()),
        )
    };
    tokio::select! {
        _ = drains => Outcome::Exited(0),
        never = feed => never,
    }
}

async fn give(
    input: Option<Input>,
    container: &Container,
    stdin: &mut mpsc::Receiver<Bytes>,
    resize: &mut mpsc::Receiver<Size>,
) {
    match input {
        Some(Input::Terminal(terminal)) => operate(&terminal, stdin, resize).await,
        Some(Input::Pipe(pipe)) => {
            feed(pipe, stdin).await;
            if container.stdin_once
                && let Err(error) = container.exec.close_stdin().await
            {
                tracing::debug!(%error, "the input of a container could not be ended");
            }
        }
        // A container without an input takes none; kubelet lets the client talk to nobody, too.
        None => while stdin.recv().await.is_some() {},
    }
}

/// Where a container reads from.
enum Input {
    Pipe(pipe::Sender),
    Terminal(Terminal),
}

impl Input {
    fn new(stdin: std::os::fd::OwnedFd, tty: bool) -> io::Result<Self> {
        if tty {
            Terminal::of_master(stdin).map(Input::Terminal)
        } else {
            pipe::Sender::from_owned_fd(stdin).map(Input::Pipe)
        }
    }
}

async fn ended(mut finished: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = finished.wait_for(|finished| *finished).await;
}

fn no_pipe(error: io::Error) -> String {
    format!("cannot make a pipe: {error}")
}
