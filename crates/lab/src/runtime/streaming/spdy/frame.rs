//! Frames: bytes to meaning and back.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ProtocolError;
use super::headers::{Deflater, Headers, Inflater};

/// 31 bits; odd ones are the client's.
pub type StreamId = u32;

const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const MAX_CONTROL: usize = 64 * 1024;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u32 = 7;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its number.
        stream: StreamId,
        /// The sender will send nothing on it.
        fin: bool,
        /// The receiver may send nothing on it.
        unidirectional: bool,
        /// What it is.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Its number.
        stream: StreamId,
        /// The sender will send nothing on it.
        fin: bool,
        /// Further description.
        headers: Headers,
    },
    /// Ends a stream at once, in both directions.
    RstStream {
        /// Its number.
        stream: StreamId,
        /// Why, as in "RST_STREAM".
        status: u32,
    },
    /// Of the settings only the initial window concerns us.
    Settings {
        /// The window of every stream that has none of its own yet.
        initial_window: Option<u32>,
    },
    /// To be sent back as it is.
    Ping(u32),
    /// The sender will not take new streams.
    GoAway {
        /// The last stream it took.
        last_good: StreamId,
        /// 0 is a normal end, 1 a protocol error.
        status: u32,
    },
    /// More headers of an open stream.
    Headers {
        /// Its number.
        stream: StreamId,
        /// The sender will send nothing more on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// The sender can take this much more.
    WindowUpdate {
        /// The stream's number.
        stream: StreamId,
        /// In bytes.
        delta: u32,
    },
    /// Bytes of a stream; a data frame may be read as several of these.
    Data {
        /// The stream's number.
        stream: StreamId,
        /// The sender will send nothing more on it.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Takes frames out of the bytes received.
#[derive(Debug)]
pub(in super::super) struct Decoder {
    inflater: Inflater,
    /// The data frame whose bytes are still arriving: they are passed on as they come, so that none has to be held
    /// whole (its length may be 16 MiB).
    data: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    stream: StreamId,
    fin: bool,
    left: usize,
}

impl Decoder {
    pub(in super::super) fn new() -> Self {
        Decoder {
            inflater: Inflater::new(),
            data: None,
        }
    }

    /// The next frame, when `buffer` holds enough for one.
    pub(in super::super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        loop {
            if let Some(partial) = self.data.take() {
                return Ok(self.data(partial, buffer));
            }
            let Some(head) = buffer.first_chunk::<8>() else {
                return Ok(None);
            };
            let [b0, b1, _, _, flags, l0, l1, l2] = *head;
            let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            if u16::from_be_bytes([b0, b1]) & CONTROL == 0 {
                let stream = u32::from_be_bytes([b0, b1, head[2], head[3]]);
                buffer.advance(8);
                self.data = Some(Partial {
                    stream,
                    fin: flags & FLAG_FIN != 0,
                    left: length,
                });
                continue;
            }
            let (version, kind) = (
                u16::from_be_bytes([b0, b1]) & !CONTROL,
                u16::from_be_bytes([head[2], head[3]]),
            );
            if version != VERSION {
                return Err(ProtocolError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(ProtocolError::TooLarge(length));
            }
            if buffer.len() < 8 + length {
                return Ok(None);
            }
            buffer.advance(8);
            let payload = buffer.split_to(length).freeze();
            if let Some(frame) = self.control(kind, flags, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn data(&mut self, mut partial: Partial, buffer: &mut BytesMut) -> Option<Frame> {
        if partial.left > 0 && buffer.is_empty() {
            self.data = Some(partial);
            return None;
        }
        let bytes = buffer.split_to(partial.left.min(buffer.len())).freeze();
        partial.left -= bytes.len();
        let last = partial.left == 0;
        let frame = Frame::Data {
            stream: partial.stream,
            fin: partial.fin && last,
            bytes,
        };
        if !last {
            self.data = Some(partial);
        }
        Some(frame)
    }

    /// `None` for a type that is to be ignored.
    fn control(&mut self, kind: u16, flags: u8, payload: Bytes) -> Result<Option<Frame>, ProtocolError> {
        let fin = flags & FLAG_FIN != 0;
        let mut fields = Fields {
            payload,
            frame: name(kind),
        };
        let frame = match kind {
            1 => {
                let stream = fields.stream()?;
                // The associated stream, the priority and the credential slot say nothing to us.
                fields.skip(6)?;
                let headers = self.inflater.block(&fields.payload)?;
                Frame::SynStream {
                    stream,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers,
                }
            }
            2 => Frame::SynReply {
                stream: fields.stream()?,
                fin,
                headers: self.inflater.block(&fields.payload)?,
            },
            3 => Frame::RstStream {
                stream: fields.stream()?,
                status: fields.u32()?,
            },
            4 => Frame::Settings {
                initial_window: fields.initial_window()?,
            },
            6 => Frame::Ping(fields.u32()?),
            7 => Frame::GoAway {
                last_good: fields.stream()?,
                status: fields.u32()?,
            },
            8 => Frame::Headers {
                stream: fields.stream()?,
                fin,
                headers: self.inflater.block(&fields.payload)?,
            },
            9 => Frame::WindowUpdate {
                stream: fields.stream()?,
                delta: fields.u32()? & 0x7fff_ffff,
            },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn name(kind: u16) -> &'static str {
    match kind {
        1 => "SYN_STREAM",
        2 => "SYN_REPLY",
        3 => "RST_STREAM",
        4 => "SETTINGS",
        6 => "PING",
        7 => "GOAWAY",
        8 => "HEADERS",
        9 => "WINDOW_UPDATE",
        _ => "unknown",
    }
}

struct Fields {
    payload: Bytes,
    frame: &'static str,
}

impl Fields {
    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.payload
            .try_get_u32()
            .map_err(|_| ProtocolError::Length(self.frame))
    }

    fn stream(&mut self) -> Result<StreamId, ProtocolError> {
        Ok(self.u32()? & 0x7fff_ffff)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), ProtocolError> {
        if self.payload.len() < bytes {
            return Err(ProtocolError::Length(self.frame));
        }
        self.payload.advance(bytes);
        Ok(())
    }

    fn initial_window(&mut self) -> Result<Option<u32>, ProtocolError> {
        let count = self.u32()?;
        let mut window = None;
        for _ in 0..count {
            let (id, value) = (self.u32()? & 0x00ff_ffff, self.u32()?);
            if id == INITIAL_WINDOW {
                window = Some(value & 0x7fff_ffff);
            }
        }
        Ok(window)
    }
}

/// Writes frames as bytes.
#[derive(Debug)]
pub(in super::super) struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    pub(in super::super) fn new() -> Self {
        Encoder {
            deflater: Deflater::new(),
        }
    }

    /// Appends `frame` to `out`.
    pub(in super::super) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => {
                let block = self.deflater.block(headers);
                let flags = u8::from(*fin) | u8::from(*unidirectional) << 1;
                control(out, 1, flags, 10 + block.len());
                out.put_u32(*stream);
                out.put_slice(&[0; 6]);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } => self.with_headers(2, *stream, *fin, headers, out),
            Frame::Headers { stream, fin, headers } => self.with_headers(8, *stream, *fin, headers, out),
            Frame::RstStream { stream, status } => two(out, 3, *stream, *status),
            Frame::Settings { initial_window } => {
                control(out, 4, 0, 4 + 8 * usize::from(initial_window.is_some()));
                out.put_u32(u32::from(initial_window.is_some()));
                if let Some(window) = initial_window {
                    out.put_u32(INITIAL_WINDOW);
                    out.put_u32(*window);
                }
            }
            Frame::Ping(id) => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last_good, status } => two(out, 7, *last_good, *status),
            Frame::WindowUpdate { stream, delta } => two(out, 9, *stream, *delta),
            Frame::Data { stream, fin, bytes } => {
                out.put_u32(*stream);
                out.put_u8(u8::from(*fin));
                out.put_uint(bytes.len() as u64, 3);
                out.put_slice(bytes);
            }
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        stream: StreamId,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) {
        let block = self.deflater.block(headers);
        control(out, kind, u8::from(fin), 4 + block.len());
        out.put_u32(stream);
        out.put_slice(&block);
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

fn two(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, 0, 8);
    out.put_u32(first);
    out.put_u32(second);
}

#[cfg(test)]
mod tests;
