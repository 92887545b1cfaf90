use proptest::prelude::*;

use super::*;

/// The other end, which keeps nothing: it writes frames and reads them.
struct Peer {
    encoder: Encoder,
    decoder: Decoder,
}

impl Peer {
    fn new() -> Self {
        Peer {
            encoder: Encoder::new(),
            decoder: Decoder::new(),
        }
    }

    fn say(&mut self, connection: &mut Connection, frame: Frame) -> Result<(), ProtocolError> {
        let mut wire = BytesMut::new();
        self.encoder.encode(&frame, &mut wire);
        connection.receive(&wire)
    }

    fn open(&mut self, connection: &mut Connection, stream: StreamId) {
        let headers = vec![("streamtype".to_owned(), "stdout".to_owned())];
        let frame = Frame::SynStream {
            stream,
            fin: false,
            unidirectional: false,
            headers: headers.clone(),
        };
        self.say(connection, frame).unwrap();
        assert_eq!(connection.event(), Some(Event::Opened { stream, headers }));
        let reply = Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::new(),
        };
        assert_eq!(self.hear(connection), [reply]);
    }

    fn hear(&mut self, connection: &mut Connection) -> Vec<Frame> {
        let mut wire = connection.output().split();
        std::iter::from_fn(|| self.decoder.decode(&mut wire).unwrap()).collect()
    }
}

fn sent(frames: &[Frame]) -> usize {
    let length = |frame: &Frame| {
        if let Frame::Data { bytes, .. } = frame {
            bytes.len()
        } else {
            0
        }
    };
    frames.iter().map(length).sum()
}

#[test]
fn each_half_of_a_stream_closes_on_its_own() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.open(&mut connection, 1);
    peer.say(
        &mut connection,
        Frame::Data {
            stream: 1,
            fin: true,
            bytes: Bytes::from("in"),
        },
    )
    .unwrap();
    assert_eq!(
        connection.event(),
        Some(Event::Data {
            stream: 1,
            bytes: Bytes::from("in")
        })
    );
    assert_eq!(connection.event(), Some(Event::Finished(1)));
    connection.send(1, Bytes::from("out"));
    connection.finish(1);
    let data = |fin, text: &'static str| Frame::Data {
        stream: 1,
        fin,
        bytes: Bytes::from(text),
    };
    assert_eq!(peer.hear(&mut connection), [data(false, "out"), data(true, "")]);
    assert!(connection.streams.is_empty());
}

#[test]
fn a_peer_that_never_mentions_windows_gets_everything() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.open(&mut connection, 1);
    connection.send(1, Bytes::from(vec![0; 1 << 20]));
    assert_eq!(sent(&peer.hear(&mut connection)), 1 << 20);
}

#[test]
fn a_peer_that_keeps_windows_is_not_sent_more_than_they_hold() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.say(
        &mut connection,
        Frame::Settings {
            initial_window: Some(1000),
        },
    )
    .unwrap();
    peer.open(&mut connection, 1);
    connection.send(1, Bytes::from(vec![0; 2500]));
    connection.finish(1);
    assert_eq!(sent(&peer.hear(&mut connection)), 1000);
    assert_eq!(connection.unsent(), 1500);
    peer.say(
        &mut connection,
        Frame::WindowUpdate {
            stream: 1,
            delta: 600,
        },
    )
    .unwrap();
    assert_eq!(sent(&peer.hear(&mut connection)), 600);
    peer.say(
        &mut connection,
        Frame::Settings {
            initial_window: Some(3000),
        },
    )
    .unwrap();
    let rest = peer.hear(&mut connection);
    assert_eq!(sent(&rest), 900);
    assert_eq!(
        rest.last(),
        Some(&Frame::Data {
            stream: 1,
            fin: true,
            bytes: Bytes::new()
        })
    );
}

#[test]
fn a_window_that_overflows_resets_the_stream() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.open(&mut connection, 1);
    peer.say(
        &mut connection,
        Frame::WindowUpdate {
            stream: 1,
            delta: 0x7fff_ffff,
        },
    )
    .unwrap();
    assert_eq!(
        peer.hear(&mut connection),
        [Frame::RstStream {
            stream: 1,
            status: RST_FLOW_CONTROL
        }]
    );
    assert_eq!(connection.event(), Some(Event::Reset(1)));
}

#[test]
fn used_bytes_open_the_peers_window_again() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.open(&mut connection, 1);
    connection.consumed(1, 20_000);
    assert_eq!(peer.hear(&mut connection), []);
    connection.consumed(1, 20_000);
    assert_eq!(
        peer.hear(&mut connection),
        [Frame::WindowUpdate {
            stream: 1,
            delta: 40_000
        }]
    );
}

#[test]
fn pings_come_back_and_answers_to_pings_do_not() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.say(&mut connection, Frame::Ping(7)).unwrap();
    peer.say(&mut connection, Frame::Ping(8)).unwrap();
    assert_eq!(peer.hear(&mut connection), [Frame::Ping(7)]);
}

#[test]
fn streams_out_of_order_end_the_session() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.open(&mut connection, 5);
    let again = Frame::SynStream {
        stream: 3,
        fin: false,
        unidirectional: false,
        headers: Headers::new(),
    };
    assert_eq!(
        peer.say(&mut connection, again),
        Err(ProtocolError::StreamOrder(3))
    );
    let farewell = Frame::GoAway {
        last_good: 5,
        status: GOAWAY_PROTOCOL_ERROR,
    };
    assert_eq!(peer.hear(&mut connection), [farewell]);
}

#[test]
fn data_for_a_stream_that_never_was_is_refused() {
    let (mut connection, mut peer) = (Connection::new(), Peer::new());
    peer.say(
        &mut connection,
        Frame::Data {
            stream: 9,
            fin: false,
            bytes: Bytes::from("x"),
        },
    )
    .unwrap();
    assert_eq!(
        peer.hear(&mut connection),
        [Frame::RstStream {
            stream: 9,
            status: RST_INVALID_STREAM
        }]
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_session_panic(chunks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut connection = Connection::new();
        for chunk in chunks {
            let broken = connection.receive(&chunk).is_err();
            while let Some(event) = connection.event() {
                if let Event::Opened { stream, .. } = event {
                    connection.send(stream, Bytes::from("hello"));
                    connection.finish(stream);
                }
            }
            if broken {
                break;
            }
        }
    }

    /// Random but well-formed frames: the session keeps its promises whatever the order.
    #[test]
    fn no_order_of_frames_makes_it_panic_or_send_past_a_window(
        steps in proptest::collection::vec((0u8..8, 0u32..12, 0u32..100_000), 0..60)) {
        let (mut connection, mut peer) = (Connection::new(), Peer::new());
        for (what, stream, number) in steps {
            let frame = match what {
                0 => Frame::SynStream { stream, fin: number % 2 == 0, unidirectional: false,
                    headers: Headers::new() },
                1 => Frame::Data { stream, fin: number % 5 == 0, bytes: Bytes::from(vec![1; 9]) },
                2 => Frame::RstStream { stream, status: number },
                3 => Frame::Settings { initial_window: Some(number) },
                4 => Frame::WindowUpdate { stream, delta: number },
                5 => Frame::Headers { stream, fin: number % 2 == 0, headers: Headers::new() },
                6 => { connection.send(stream, Bytes::from(vec![2; number as usize])); continue }
                _ => { connection.finish(stream); connection.consumed(stream, number as usize); continue }
            };
            if peer.say(&mut connection, frame).is_err() {
                break;
            }
            for state in connection.streams.values() {
                let held_back = connection.peer_keeps_windows && state.window <= 0;
                prop_assert!(state.waiting.is_empty() || held_back);
            }
        }
    }
}
