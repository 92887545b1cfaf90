//! SPDY/3.1, the server's side, without I/O: what kubectl before 1.30 speaks for exec and attach.
//!
//! The specification is draft-mbelshe-httpbis-spdy-00 with the changes of SPDY/3.1; sections are named by its titles.
//! The peer is always the Go library spdystream, which knows no flow control: it neither sends WINDOW_UPDATE nor heeds
//! it. So windows are kept as the specification says, but hold data back only from a peer that has shown that it
//! will open them again (see [`Connection`]).

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Event};
pub use frame::{Frame, StreamId};
pub use headers::Headers;

#[cfg(test)]
pub(super) use frame::{Decoder, Encoder};

/// The bytes break the protocol: the session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The frame's version is not 3.
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    /// The frame is shorter than its type needs, or its parts do not fit its length.
    #[error("a {0} frame of a wrong length")]
    Length(&'static str),
    /// A control frame larger than any that makes sense.
    #[error("a control frame of {0} bytes")]
    TooLarge(usize),
    /// The header block does not decompress, or not to names and values.
    #[error("a broken header block: {0}")]
    Headers(&'static str),
    /// A stream with an identifier that goes backwards, or is the server's.
    #[error("stream {0} opened out of order")]
    StreamOrder(StreamId),
    /// More streams than any exec needs.
    #[error("more than {0} streams")]
    TooManyStreams(usize),
}
