//! The session: streams opened by the client, their halves, and how much may be sent on each.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::frame::{Decoder, Encoder, Frame, StreamId};
use super::{Headers, ProtocolError};

/// An exec has five.
const MAX_STREAMS: usize = 64;
/// "Flow control": what a stream may carry before its first WINDOW_UPDATE.
const DEFAULT_WINDOW: u32 = 64 * 1024;
const MAX_WINDOW: i64 = 0x7fff_ffff;
/// A data frame's length has 24 bits; small frames keep the streams interleaved.
const MAX_DATA: usize = 32 * 1024;

const RST_PROTOCOL_ERROR: u32 = 1;
const RST_INVALID_STREAM: u32 = 2;
const RST_FLOW_CONTROL: u32 = 7;
const GOAWAY_OK: u32 = 0;
const GOAWAY_PROTOCOL_ERROR: u32 = 1;

/// What the peer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It opened a stream, which has been accepted.
    Opened {
        /// The stream.
        stream: StreamId,
        /// What the stream is.
        headers: Headers,
    },
    /// It sent bytes. Say when they have been used: [`Connection::consumed`].
    Data {
        /// The stream.
        stream: StreamId,
        /// The bytes.
        bytes: Bytes,
    },
    /// It will send no more on this stream.
    Finished(StreamId),
    /// It ended this stream, in both directions.
    Reset(StreamId),
    /// It will open no more streams.
    GoneAway,
}

/// One session as the server sees it. Bytes go in by [`Connection::receive`], events come out by
/// [`Connection::event`], bytes to be sent stand in [`Connection::output`].
///
/// A stream's window holds data back only once the peer has sent a WINDOW_UPDATE or a SETTINGS with an initial
/// window: the peers of the field never do, and would wait for ever for what comes after the first 64 KiB.
#[derive(Debug)]
pub struct Connection {
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
    events: VecDeque<Event>,
    streams: BTreeMap<StreamId, Stream>,
    last_opened: StreamId,
    initial_window: u32,
    peer_keeps_windows: bool,
    failed: bool,
}

#[derive(Debug)]
struct Stream {
    window: i64,
    waiting: VecDeque<Bytes>,
    finish_after_waiting: bool,
    we_finished: bool,
    peer_finished: bool,
    consumed: u32,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

impl Connection {
    /// A session that has just begun.
    pub fn new() -> Self {
        Connection {
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            events: VecDeque::new(),
            streams: BTreeMap::new(),
            last_opened: 0,
            initial_window: DEFAULT_WINDOW,
            peer_keeps_windows: false,
            failed: false,
        }
    }

    /// Takes bytes from the peer. After an error the session is over, and the output ends with the GOAWAY that says so.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.failed {
            return Ok(());
        }
        self.input.extend_from_slice(bytes);
        let outcome = self.frames();
        if outcome.is_err() {
            self.failed = true;
            self.go_away(GOAWAY_PROTOCOL_ERROR);
        }
        outcome
    }

    fn frames(&mut self) -> Result<(), ProtocolError> {
        while let Some(frame) = self.decoder.decode(&mut self.input)? {
            self.frame(frame)?;
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => {
                self.open(stream, fin, unidirectional, headers)?;
            }
            Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes),
            Frame::Headers {
                stream, fin: true, ..
            } => self.peer_finished(stream),
            Frame::RstStream { stream, .. } => {
                if self.streams.remove(&stream).is_some() {
                    self.events.push_back(Event::Reset(stream));
                }
            }
            // "PING": even numbers would be answers to ours, and we send none.
            Frame::Ping(id) if id % 2 == 1 => self.emit(&Frame::Ping(id)),
            Frame::GoAway { .. } => self.events.push_back(Event::GoneAway),
            Frame::WindowUpdate { stream, delta } => self.window_update(stream, delta),
            Frame::Settings {
                initial_window: Some(window),
            } => self.initial_window(window),
            // We open no streams; the rest says nothing to us.
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Ping(_) | Frame::Settings { .. } => {}
        }
        Ok(())
    }

    fn open(
        &mut self,
        stream: StreamId,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    ) -> Result<(), ProtocolError> {
        // "Stream creation": odd and rising, or the session is broken.
        if stream.is_multiple_of(2) || stream <= self.last_opened {
            return Err(ProtocolError::StreamOrder(stream));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(ProtocolError::TooManyStreams(MAX_STREAMS));
        }
        self.last_opened = stream;
        let state = Stream {
            window: i64::from(self.initial_window),
            waiting: VecDeque::new(),
            finish_after_waiting: false,
            we_finished: unidirectional,
            peer_finished: false,
            consumed: 0,
        };
        self.streams.insert(stream, state);
        if !unidirectional {
            self.emit(&Frame::SynReply {
                stream,
                fin: false,
                headers: Headers::new(),
            });
        }
        self.events.push_back(Event::Opened { stream, headers });
        if fin {
            self.peer_finished(stream);
        }
        Ok(())
    }

    fn data(&mut self, stream: StreamId, fin: bool, bytes: Bytes) {
        match self.streams.get(&stream) {
            Some(state) if !state.peer_finished => {
                if !bytes.is_empty() {
                    self.events.push_back(Event::Data { stream, bytes });
                }
                if fin {
                    self.peer_finished(stream);
                }
            }
            Some(_) => self.reset(stream, RST_PROTOCOL_ERROR),
            // Data may cross the RST_STREAM or the end that we sent; only a stream that never was is an error.
            None if stream > self.last_opened || stream.is_multiple_of(2) => {
                self.emit(&Frame::RstStream {
                    stream,
                    status: RST_INVALID_STREAM,
                });
            }
            None => {}
        }
    }

    fn peer_finished(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        if !std::mem::replace(&mut state.peer_finished, true) {
            self.events.push_back(Event::Finished(stream));
        }
        self.forget_when_done(stream);
    }

    fn window_update(&mut self, stream: StreamId, delta: u32) {
        self.peer_keeps_windows = true;
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        state.window += i64::from(delta);
        if state.window > MAX_WINDOW {
            self.reset(stream, RST_FLOW_CONTROL);
            self.events.push_back(Event::Reset(stream));
            return;
        }
        self.flush(stream);
    }

    fn initial_window(&mut self, window: u32) {
        self.peer_keeps_windows = true;
        let change = i64::from(window) - i64::from(self.initial_window);
        self.initial_window = window;
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            if let Some(state) = self.streams.get_mut(&stream) {
                state.window += change;
            }
            self.flush(stream);
        }
    }

    /// What the peer did next.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Sends `bytes`, now or when the stream's window opens. Nothing happens on a stream that is gone.
    pub fn send(&mut self, stream: StreamId, mut bytes: Bytes) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        if state.we_finished || state.finish_after_waiting {
            return;
        }
        while !bytes.is_empty() {
            state.waiting.push_back(bytes.split_to(bytes.len().min(MAX_DATA)));
        }
        self.flush(stream);
    }

    /// We will send no more on `stream`.
    pub fn finish(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        state.finish_after_waiting = true;
        self.flush(stream);
    }

    /// Ends `stream` in both directions.
    pub fn reset(&mut self, stream: StreamId, status: u32) {
        if self.streams.remove(&stream).is_some() {
            self.emit(&Frame::RstStream { stream, status });
        }
    }

    /// So many received bytes have been used: opens the peer's window when half of it is.
    pub fn consumed(&mut self, stream: StreamId, bytes: usize) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        state.consumed = state
            .consumed
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if state.consumed < DEFAULT_WINDOW / 2 || state.peer_finished {
            return;
        }
        let delta = std::mem::take(&mut state.consumed).min(0x7fff_ffff);
        self.emit(&Frame::WindowUpdate { stream, delta });
    }

    /// Says that the session ends normally.
    pub fn close(&mut self) {
        self.go_away(GOAWAY_OK);
    }

    /// The bytes to be sent; the caller takes them from the front.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// How many bytes have not left yet, on all streams.
    pub fn unsent(&self) -> usize {
        let waiting = |stream: &Stream| stream.waiting.iter().map(Bytes::len).sum::<usize>();
        self.output.len() + self.streams.values().map(waiting).sum::<usize>()
    }

    fn flush(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        while let Some(mut bytes) = state.waiting.pop_front() {
            if self.peer_keeps_windows {
                let room = usize::try_from(state.window).unwrap_or(0);
                if room == 0 {
                    state.waiting.push_front(bytes);
                    return;
                }
                if bytes.len() > room {
                    state.waiting.push_front(bytes.split_off(room));
                }
            }
            state.window -= bytes.len() as i64;
            self.encoder.encode(
                &Frame::Data {
                    stream,
                    fin: false,
                    bytes,
                },
                &mut self.output,
            );
        }
        if state.finish_after_waiting && !state.we_finished {
            state.we_finished = true;
            self.encoder.encode(
                &Frame::Data {
                    stream,
                    fin: true,
                    bytes: Bytes::new(),
                },
                &mut self.output,
            );
            self.forget_when_done(stream);
        }
    }

    fn forget_when_done(&mut self, stream: StreamId) {
        if self
            .streams
            .get(&stream)
            .is_some_and(|state| state.we_finished && state.peer_finished)
        {
            self.streams.remove(&stream);
        }
    }

    fn go_away(&mut self, status: u32) {
        let last_good = self.last_opened;
        self.emit(&Frame::GoAway { last_good, status });
    }

    fn emit(&mut self, frame: &Frame) {
        self.encoder.encode(frame, &mut self.output);
    }
}

#[cfg(test)]
mod tests;
