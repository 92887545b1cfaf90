//! Carries a session over WebSocket (kubectl from 1.30, the client libraries).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::super::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use super::super::request::StreamOptions;
use super::status::Outcome;
use super::{CarrierEnds, FAREWELL, Output, Size, hung_up};

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subprotocol {
    name: &'static str,
    /// Text messages with the channel as a digit and the rest in base64.
    base64: bool,
    version: u8,
}

/// All that are spoken. The empty one is for clients that name none.
const SUBPROTOCOLS: [Subprotocol; 7] = [
    Subprotocol {
        name: "v5.channel.k8s.io",
        base64: false,
        version: 5,
    },
    Subprotocol {
        name: "v5.base64.channel.k8s.io",
        base64: true,
        version: 5,
    },
    Subprotocol {
        name: "v4.channel.k8s.io",
        base64: false,
        version: 4,
    },
    Subprotocol {
        name: "v4.base64.channel.k8s.io",
        base64: true,
        version: 4,
    },
    Subprotocol {
        name: "channel.k8s.io",
        base64: false,
        version: 1,
    },
    Subprotocol {
        name: "base64.channel.k8s.io",
        base64: true,
        version: 1,
    },
    Subprotocol {
        name: "",
        base64: false,
        version: 1,
    },
];

impl Subprotocol {
    /// The first of the client's that is spoken here.
    pub(super) fn choose<'a>(mut offered: impl Iterator<Item = &'a str>) -> Option<Self> {
        offered.find_map(|offer| SUBPROTOCOLS.into_iter().find(|known| known.name == offer))
    }

    /// Its name on the wire.
    pub(super) fn name(self) -> &'static str {
        self.name
    }

    fn message(self, channel: u8, payload: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::from(char::from(b'0' + channel));
            BASE64.encode_string(payload, &mut text);
            return Message::text(text);
        }
        let mut bytes = BytesMut::with_capacity(payload.len() + 1);
        bytes.put_u8(channel);
        bytes.put_slice(payload);
        Message::binary(bytes.freeze())
    }

    /// Channel and payload; `None` when the message is of no such form.
    fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let payload = bytes.split_off(1);
        if !self.base64 {
            return Some((bytes[0], payload));
        }
        Some((bytes[0].checked_sub(b'0')?, BASE64.decode(&payload).ok()?.into()))
    }

    fn status(self, outcome: &Outcome) -> Vec<u8> {
        if self.version >= 4 {
            outcome.json()
        } else {
            outcome.message().into_bytes()
        }
    }
}

/// Carries until the session has ended or the client has gone. `early` has been read after the request already.
pub(super) async fn carry(
    stream: UnixStream,
    early: Bytes,
    subprotocol: Subprotocol,
    wanted: StreamOptions,
    ends: CarrierEnds,
) -> io::Result<()> {
    let watched = rustix::io::fcntl_dupfd_cloexec(&stream, 0)?;
    let socket = WebSocketStream::from_partially_read(stream, early.to_vec(), Role::Server, None).await;
    let (sink, source) = socket.split();
    let CarrierEnds {
        stdin,
        resize,
        output,
    } = ends;
    let mut receiver = Receiver {
        source,
        subprotocol,
        stdin,
        resize,
    };
    tokio::select! {
        sent = send(sink, subprotocol, wanted, output) => sent.map_err(io::Error::other)?,
        () = receiver.run() => return Ok(()),
        () = hung_up(watched) => return Ok(()),
    }
    // Until the client has read everything and says good-bye.
    receiver.stdin = None;
    let _ = timeout(FAREWELL, receiver.run()).await;
    Ok(())
}

struct Receiver {
    source: SplitStream<WebSocketStream<UnixStream>>,
    subprotocol: Subprotocol,
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<Size>,
}

impl Receiver {
    /// Until the client has closed or gone.
    async fn run(&mut self) {
        // Pings are answered by the socket itself while it is read.
        while let Some(Ok(message)) = self.source.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            if let Some((channel, payload)) = self.subprotocol.read(message) {
                self.take(channel, payload).await;
            }
        }
    }

    async fn take(&mut self, channel: u8, payload: Bytes) {
        match channel {
            STDIN if !payload.is_empty() => {
                let taken = match &self.stdin {
                    Some(stdin) => stdin.send(payload).await.is_ok(),
                    None => return,
                };
                if !taken {
                    self.stdin = None;
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice(&payload) {
                    // A size that finds no room will be followed by a newer one.
                    let _ = self.resize.try_send(size);
                }
            }
            CLOSE if self.subprotocol.version >= 5 && payload.first() == Some(&STDIN) => self.stdin = None,
            _ => {}
        }
    }
}

async fn send(
    mut sink: SplitSink<WebSocketStream<UnixStream>, Message>,
    subprotocol: Subprotocol,
    wanted: StreamOptions,
    mut output: mpsc::Receiver<Output>,
) -> Result<(), Error> {
    // An empty message on the lowest channel that can be read tells the client that all is set up.
    let lowest = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    sink.send(subprotocol.message(lowest, &[])).await?;
    let outcome = loop {
        match output.recv().await {
            Some(Output::Stdout(bytes)) => sink.send(subprotocol.message(STDOUT, &bytes)).await?,
            Some(Output::Stderr(bytes)) => sink.send(subprotocol.message(STDERR, &bytes)).await?,
            Some(Output::End(outcome)) => break outcome,
            None => break Outcome::Failed("the runtime gave up".into()),
        }
    };
    let status = subprotocol.status(&outcome);
    if !status.is_empty() {
        sink.send(subprotocol.message(ERROR, &status)).await?;
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: Default::default(),
    };
    sink.send(Message::Close(Some(close))).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_clients_order_decides() {
        let choose =
            |offered: &[&'static str]| Subprotocol::choose(offered.iter().copied()).map(Subprotocol::name);
        assert_eq!(
            choose(&["v9.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some("v4.channel.k8s.io")
        );
        assert_eq!(choose(&[""]), Some(""));
        assert_eq!(choose(&["soap"]), None);
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(
            which in 0..SUBPROTOCOLS.len(), channel in 0u8..5, payload in proptest::collection::vec(any::<u8>(), 0..99)) {
            let protocol = SUBPROTOCOLS[which];
            let read = protocol.read(protocol.message(channel, &payload));
            prop_assert_eq!(read, Some((channel, Bytes::from(payload))));
        }

        #[test]
        fn no_message_makes_it_panic(which in 0..SUBPROTOCOLS.len(), bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            let protocol = SUBPROTOCOLS[which];
            let _ = protocol.read(Message::text(String::from_utf8_lossy(&bytes).into_owned()));
            let _ = protocol.read(Message::binary(bytes));
        }
    }
}
