//! Carries a session over SPDY/3.1 (kubectl before 1.30).

use std::collections::VecDeque;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout};

use super::super::request::StreamOptions;
use super::super::spdy::{Connection, Event, StreamId};
use super::status::Outcome;
use super::{CarrierEnds, FAREWELL, Output, STREAM_CREATION, Size, hung_up};

/// Input is read ahead of the command by so much, output ahead of the client.
const AHEAD: usize = 128 * 1024;

/// The versions of the exec protocol over SPDY, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// The first one.
    V1,
    /// Fixes what v1 did wrong with the end of a stream.
    V2,
    /// Adds the resize stream.
    V3,
    /// Ends with a `metav1.Status` instead of a text.
    V4,
}

impl Version {
    /// From the value of an `X-Stream-Protocol-Version` header.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "v4.channel.k8s.io" => Some(Version::V4),
            "v3.channel.k8s.io" => Some(Version::V3),
            "v2.channel.k8s.io" => Some(Version::V2),
            "channel.k8s.io" => Some(Version::V1),
            _ => None,
        }
    }

    /// Its name on the wire.
    pub(super) fn name(self) -> &'static str {
        match self {
            Version::V4 => "v4.channel.k8s.io",
            Version::V3 => "v3.channel.k8s.io",
            Version::V2 => "v2.channel.k8s.io",
            Version::V1 => "channel.k8s.io",
        }
    }
}

/// A connection whose client has opened all streams.
pub(super) struct Carrier {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    connection: Connection,
    streams: Streams,
    version: Version,
    input: VecDeque<Bytes>,
    resize: Vec<u8>,
}

#[derive(Debug, Default)]
struct Streams {
    error: Option<StreamId>,
    stdin: Option<StreamId>,
    stdout: Option<StreamId>,
    stderr: Option<StreamId>,
    resize: Option<StreamId>,
    /// The client has closed its input.
    stdin_ended: bool,
}

impl Streams {
    fn open(&mut self, stream: StreamId, kind: &str) -> bool {
        let place = match kind {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            _ => return false,
        };
        place.replace(stream).is_none()
    }

    fn complete(&self, wanted: StreamOptions, version: Version) -> bool {
        self.error.is_some()
            && (!wanted.stdin || self.stdin.is_some())
            && (!wanted.stdout || self.stdout.is_some())
            && (!wanted.stderr || self.stderr.is_some())
            && (!wanted.tty || version < Version::V3 || self.resize.is_some())
    }
}

impl Carrier {
    /// Waits for the streams that the request announced. `early` has been read after the request already.
    pub(super) async fn accept(
        stream: UnixStream,
        early: Bytes,
        version: Version,
        wanted: StreamOptions,
    ) -> io::Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut carrier = Carrier {
            reader,
            writer,
            connection: Connection::new(),
            streams: Streams::default(),
            version,
            input: VecDeque::new(),
            resize: Vec::new(),
        };
        carrier.receive(&early)?;
        let opened = timeout(STREAM_CREATION, carrier.wait_for_streams(wanted)).await;
        opened.map_err(|_| io::Error::other("the client did not open all streams in time"))??;
        Ok(carrier)
    }

    async fn wait_for_streams(&mut self, wanted: StreamOptions) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            self.writer.write_all_buf(self.connection.output()).await?;
            if self.streams.complete(wanted, self.version) {
                return Ok(());
            }
            buffer.reserve(4096);
            if self.reader.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.receive(&buffer.split())?;
        }
    }

    /// Carries until the session has ended or the client has gone.
    pub(super) async fn carry(mut self, mut ends: CarrierEnds) -> io::Result<()> {
        let watched = rustix::io::fcntl_dupfd_cloexec(self.reader.as_ref(), 0)?;
        let gone = hung_up(watched);
        tokio::pin!(gone);
        let mut buffer = BytesMut::new();
        let mut until = None;
        loop {
            self.hand_over_resizes(&ends);
            if self.input.is_empty() && self.streams.stdin_ended {
                ends.stdin = None;
            }
            if ends.stdin.is_none()
                || ends
                    .stdin
                    .as_ref()
                    .is_some_and(tokio::sync::mpsc::Sender::is_closed)
            {
                self.discard_input();
            }
            buffer.reserve(32 * 1024);
            let ahead: usize = self.input.iter().map(Bytes::len).sum();
            let deadline = until.unwrap_or_else(Instant::now);
            tokio::select! {
                read = self.reader.read_buf(&mut buffer), if ahead < AHEAD => {
                    if read? == 0 {
                        return Ok(());
                    }
                    self.receive(&buffer.split())?;
                }
                written = self.writer.write_buf(self.connection.output()), if !self.connection.output().is_empty() => {
                    written?;
                }
                permit = reserve(ends.stdin.as_ref()), if !self.input.is_empty() => {
                    if let (Some(permit), Some(bytes)) = (permit, self.input.pop_front()) {
                        self.consumed(bytes.len());
                        permit.send(bytes);
                    }
                }
                said = ends.output.recv(), if until.is_none() && self.connection.unsent() < AHEAD => {
                    if self.say(said) {
                        until = Some(Instant::now() + FAREWELL);
                    }
                }
                () = &mut gone => return Ok(()),
                () = tokio::time::sleep_until(deadline), if until.is_some() => {
                    self.connection.close();
                    return timeout(FAREWELL, self.writer.write_all_buf(self.connection.output())).await?;
                }
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        let outcome = self.connection.receive(bytes);
        while let Some(event) = self.connection.event() {
            self.happened(event);
        }
        outcome.map_err(io::Error::other)
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Opened { stream, headers } => {
                let kind = headers
                    .iter()
                    .find(|(name, _)| name == "streamtype")
                    .map(|(_, value)| value.as_str());
                if !self.streams.open(stream, kind.unwrap_or_default()) {
                    const REFUSED_STREAM: u32 = 3;
                    self.connection.reset(stream, REFUSED_STREAM);
                }
            }
            Event::Data { stream, bytes } if self.streams.stdin == Some(stream) => {
                self.input.push_back(bytes)
            }
            Event::Data { stream, bytes } => {
                if self.streams.resize == Some(stream) && self.resize.len() < 4096 {
                    self.resize.extend_from_slice(&bytes);
                }
                self.connection.consumed(stream, bytes.len());
            }
            Event::Finished(stream) | Event::Reset(stream) => {
                self.streams.stdin_ended |= self.streams.stdin == Some(stream);
            }
            Event::GoneAway => {}
        }
    }

    fn consumed(&mut self, bytes: usize) {
        if let Some(stdin) = self.streams.stdin {
            self.connection.consumed(stdin, bytes);
        }
    }

    /// Nobody takes the input any more: it must not keep the client waiting.
    fn discard_input(&mut self) {
        let bytes = self.input.drain(..).map(|bytes| bytes.len()).sum();
        self.consumed(bytes);
    }

    /// The resize stream is a row of JSON objects.
    fn hand_over_resizes(&mut self, ends: &CarrierEnds) {
        let mut objects = serde_json::Deserializer::from_slice(&self.resize).into_iter::<Size>();
        let mut used = 0;
        let mut broken = false;
        for size in &mut objects {
            match size {
                // A size that finds no room will be followed by a newer one.
                Ok(size) => drop(ends.resize.try_send(size)),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
            used += 1;
        }
        let end = if broken {
            self.resize.len()
        } else {
            objects.byte_offset()
        };
        if used > 0 || broken {
            self.resize.drain(..end);
        }
    }

    /// Passes on what the session said; true when that was its last word.
    fn say(&mut self, said: Option<Output>) -> bool {
        let outcome = match said {
            Some(Output::Stdout(bytes)) => return self.send(self.streams.stdout, bytes),
            Some(Output::Stderr(bytes)) => return self.send(self.streams.stderr, bytes),
            Some(Output::End(outcome)) => outcome,
            None => Outcome::Failed("the runtime gave up".into()),
        };
        // Output first, then how it ended: clients stop reading when they have the status.
        for stream in [self.streams.stdout, self.streams.stderr].into_iter().flatten() {
            self.connection.finish(stream);
        }
        let status = if self.version == Version::V4 {
            outcome.json()
        } else {
            outcome.message().into_bytes()
        };
        self.send(self.streams.error, status.into());
        let last = [self.streams.error, self.streams.stdin, self.streams.resize];
        for stream in last.into_iter().flatten() {
            self.connection.finish(stream);
        }
        true
    }

    fn send(&mut self, stream: Option<StreamId>, bytes: Bytes) -> bool {
        if let Some(stream) = stream {
            self.connection.send(stream, bytes);
        }
        false
    }
}

async fn reserve(
    stdin: Option<&tokio::sync::mpsc::Sender<Bytes>>,
) -> Option<tokio::sync::mpsc::Permit<'_, Bytes>> {
    match stdin {
        Some(stdin) => stdin.reserve().await.ok(),
        None => None,
    }
}
