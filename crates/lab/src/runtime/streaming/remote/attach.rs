//! Attach: what a container writes from now on, read from its log.

use bytes::{BufMut, BytesMut};

use super::super::log::{Reader, Record, Stream};
use super::super::request::StreamOptions;
use super::super::{Container, LogSource};
use super::status::Outcome;
use super::{Output, SessionEnds};

/// Sends the container's output until it ends or the client goes.
pub(super) async fn run(container: Container, streams: StreamOptions, mut ends: SessionEnds) {
    let output = ends.output.clone();
    let unread = async {
        // A container without an input takes none; kubelet lets the client talk to nobody, too.
        while ends.stdin.recv().await.is_some() {}
        std::future::pending::<()>().await
    };
    tokio::select! {
        outcome = watch(container.log, streams, &ends.output) => {
            let _ = output.send(Output::End(outcome)).await;
        }
        () = output.closed() => {}
        () = unread => {}
    }
}

async fn watch(
    log: LogSource,
    streams: StreamOptions,
    output: &tokio::sync::mpsc::Sender<Output>,
) -> Outcome {
    let sent = async {
        let mut reader = Reader::open(log, Some(0), true)?;
        loop {
            while let Some(record) = reader.next_ready()? {
                let Some(said) = say(&record, streams) else {
                    continue;
                };
                if output.send(said).await.is_err() {
                    return Ok(());
                }
            }
            if !reader.more().await? {
                return std::io::Result::Ok(());
            }
        }
    };
    match sent.await {
        Ok(()) => Outcome::Exited(0),
        Err(error) => Outcome::Failed(format!("cannot read the container's log: {error}")),
    }
}

/// The bytes of a record, if the client wants this stream. A terminal has one only.
fn say(record: &Record<'_>, streams: StreamOptions) -> Option<Output> {
    let mut bytes = BytesMut::with_capacity(record.text.len() + 2);
    bytes.put_slice(record.text);
    if !record.partial {
        bytes.put_slice(if streams.tty { b"\r\n" } else { b"\n" });
    }
    match record.stream {
        Stream::Stdout if streams.stdout => Some(Output::Stdout(bytes.freeze())),
        Stream::Stderr if streams.stderr => Some(Output::Stderr(bytes.freeze())),
        _ => None,
    }
}
