//! Clients that say what kubectl and the client libraries say.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::super::spdy::{Decoder, Encoder, Frame, Headers, StreamId};

const PATIENCE: Duration = Duration::from_secs(20);

/// Status and body of a plain GET.
pub(super) async fn get(socket: &Path, path: &str) -> (u16, String) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "kubelet")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect();
    let body = tokio::time::timeout(PATIENCE, body)
        .await
        .expect("in time")
        .unwrap()
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What a client has got.
#[derive(Debug, Default)]
pub(super) struct Got {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) status: String,
}

impl Got {
    /// From the status in JSON.
    pub(super) fn exit_code(&self) -> i32 {
        let status: serde_json::Value = serde_json::from_str(&self.status).unwrap();
        if status["status"] == "Success" {
            return 0;
        }
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        status["details"]["causes"][0]["message"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// kubectl before 1.30.
pub(super) struct SpdyClient {
    stream: UnixStream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    streams: Vec<(&'static str, StreamId, bool)>,
    got: Got,
}

impl SpdyClient {
    pub(super) async fn start(socket: &Path, path: &str) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: kubelet\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.to_lowercase()
                .contains("x-stream-protocol-version: v4.channel.k8s.io"),
            "{head}"
        );
        let mut client = SpdyClient {
            stream,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            input: BytesMut::new(),
            streams: Vec::new(),
            got: Got::default(),
        };
        client.open("error").await;
        for (parameter, kind) in [
            ("input=1", "stdin"),
            ("output=1", "stdout"),
            ("error=1", "stderr"),
            ("tty=1", "resize"),
        ] {
            if path.contains(parameter) {
                client.open(kind).await;
            }
        }
        client
    }

    async fn open(&mut self, kind: &'static str) {
        let stream = self.streams.len() as StreamId * 2 + 1;
        self.streams.push((kind, stream, false));
        let headers: Headers = vec![("streamtype".into(), kind.into())];
        self.say(Frame::SynStream {
            stream,
            fin: false,
            unidirectional: false,
            headers,
        })
        .await;
    }

    async fn say(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        self.encoder.encode(&frame, &mut wire);
        self.stream.write_all(&wire).await.unwrap();
    }

    fn id(&self, kind: &str) -> StreamId {
        self.streams.iter().find(|(name, ..)| *name == kind).unwrap().1
    }

    pub(super) async fn stdin(&mut self, bytes: &[u8]) {
        let stream = self.id("stdin");
        for chunk in bytes.chunks(32 * 1024) {
            self.say(Frame::Data {
                stream,
                fin: false,
                bytes: Bytes::copy_from_slice(chunk),
            })
            .await;
        }
    }

    pub(super) async fn close_stdin(&mut self) {
        let stream = self.id("stdin");
        self.say(Frame::Data {
            stream,
            fin: true,
            bytes: Bytes::new(),
        })
        .await;
    }

    pub(super) async fn resize(&mut self, width: u16, height: u16) {
        let stream = self.id("resize");
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.say(Frame::Data {
            stream,
            fin: false,
            bytes: size.into(),
        })
        .await;
    }

    async fn hear(&mut self) {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input))
            .await
            .expect("in time");
        assert!(
            read.unwrap() > 0,
            "the server closed before the client did: {:?}",
            self.got
        );
        self.decode();
    }

    fn decode(&mut self) {
        while let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
            let Frame::Data { stream, fin, bytes } = frame else {
                continue;
            };
            let place = self.streams.iter_mut().find(|(_, id, _)| *id == stream).unwrap();
            place.2 |= fin;
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            match place.0 {
                "stdout" => self.got.stdout += &text,
                "stderr" => self.got.stderr += &text,
                "error" => self.got.status += &text,
                other => assert!(text.is_empty(), "data on {other}"),
            }
        }
    }

    pub(super) async fn read_until(&mut self, text: &str) {
        while !self.got.stdout.contains(text) {
            self.hear().await;
        }
    }

    /// Until all that the server writes to has ended.
    pub(super) async fn finish(&mut self) -> Got {
        while self.streams.iter().any(|(_, _, ended)| !ended) {
            self.hear().await;
        }
        std::mem::take(&mut self.got)
    }

    /// Sends all of it while reading what comes.
    pub(super) async fn echo(&mut self, bytes: &[u8]) -> Got {
        let stream = self.id("stdin");
        let mut wire = BytesMut::new();
        for chunk in bytes.chunks(50_000) {
            let frame = Frame::Data {
                stream,
                fin: false,
                bytes: Bytes::copy_from_slice(chunk),
            };
            self.encoder.encode(&frame, &mut wire);
        }
        self.encoder.encode(
            &Frame::Data {
                stream,
                fin: true,
                bytes: Bytes::new(),
            },
            &mut wire,
        );
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !wire.is_empty() {
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                written = writer.write_buf(&mut wire) => drop(written.unwrap()),
                read = reader.read_buf(&mut self.input) => drop(read.unwrap()),
                () = tokio::time::sleep_until(deadline) => panic!("too slow"),
            }
            self.decode();
        }
        self.finish().await
    }
}

/// kubectl from 1.30, kube-rs, the Python client.
pub(super) struct WebSocketClient {
    socket: WebSocketStream<UnixStream>,
    base64: bool,
    got: Got,
}

impl WebSocketClient {
    pub(super) async fn start(socket: &Path, path: &str, protocol: &str) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut request = format!("ws://kubelet{path}").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol.parse().unwrap());
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        WebSocketClient {
            socket,
            base64: protocol.contains("base64"),
            got: Got::default(),
        }
    }

    async fn say(&mut self, channel: u8, payload: &[u8]) {
        self.socket.send(message(channel, payload)).await.unwrap();
    }

    pub(super) async fn stdin(&mut self, bytes: &[u8]) {
        self.say(0, bytes).await;
    }

    pub(super) async fn close_stdin(&mut self) {
        self.say(255, &[0]).await;
    }

    pub(super) async fn resize(&mut self, width: u16, height: u16) {
        self.say(4, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes())
            .await;
    }

    pub(super) async fn finish(mut self) -> Got {
        while let Some(heard) = tokio::time::timeout(PATIENCE, self.socket.next())
            .await
            .expect("in time")
        {
            take(&mut self.got, self.base64, heard.unwrap());
        }
        self.got
    }

    pub(super) async fn echo(self, bytes: &[u8]) -> Got {
        let (mut sink, mut source) = self.socket.split();
        let mut got = Got::default();
        let send = async {
            for chunk in bytes.chunks(50_000) {
                sink.send(message(0, chunk)).await.unwrap();
            }
            sink.send(message(255, &[0])).await.unwrap();
        };
        let receive = async {
            while let Some(heard) = source.next().await {
                take(&mut got, false, heard.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, async { tokio::join!(send, receive) })
            .await
            .expect("in time");
        got
    }
}

fn message(channel: u8, payload: &[u8]) -> Message {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(payload);
    Message::binary(bytes)
}

fn take(got: &mut Got, base64: bool, heard: Message) {
    let (channel, payload) = match heard {
        Message::Binary(bytes) => (bytes[0], bytes[1..].to_vec()),
        Message::Text(text) if base64 => {
            let payload = base64::engine::general_purpose::STANDARD
                .decode(&text.as_bytes()[1..])
                .unwrap();
            (text.as_bytes()[0] - b'0', payload)
        }
        _ => return,
    };
    let text = String::from_utf8(payload).unwrap();
    match channel {
        1 => got.stdout += &text,
        2 => got.stderr += &text,
        3 => got.status += &text,
        other => panic!("data on channel {other}"),
    }
}
