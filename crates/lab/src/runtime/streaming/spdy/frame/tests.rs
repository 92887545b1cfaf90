use proptest::prelude::*;

use super::*;

fn headers() -> impl Strategy<Value = Headers> {
    let header = ("[a-z][a-z0-9-]{0,12}", "[ -~]{0,40}");
    proptest::collection::btree_map(header.0, header.1, 0..6).prop_map(|map| map.into_iter().collect())
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = 1u32..0x7fff_ffff;
    let bytes = proptest::collection::vec(any::<u8>(), 1..300).prop_map(Bytes::from);
    prop_oneof![
        (id.clone(), any::<bool>(), any::<bool>(), headers()).prop_map(
            |(stream, fin, unidirectional, headers)| Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers
            }
        ),
        (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
            stream,
            fin,
            headers
        }),
        (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
            stream,
            fin,
            headers
        }),
        (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
        proptest::option::of(id.clone()).prop_map(|initial_window| Frame::Settings { initial_window }),
        any::<u32>().prop_map(Frame::Ping),
        (id.clone(), any::<u32>()).prop_map(|(last_good, status)| Frame::GoAway { last_good, status }),
        (id.clone(), id.clone()).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        (id, any::<bool>(), bytes).prop_map(|(stream, fin, bytes)| Frame::Data { stream, fin, bytes }),
    ]
}

proptest! {
    #[test]
    fn frames_are_read_as_they_were_written(frames in proptest::collection::vec(frame(), 0..12)) {
        let (mut encoder, mut decoder, mut wire) = (Encoder::new(), Decoder::new(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut wire);
        }
        for frame in &frames {
            let read = decoder.decode(&mut wire).unwrap();
            prop_assert_eq!(read.as_ref(), Some(frame));
        }
        prop_assert_eq!(decoder.decode(&mut wire).unwrap(), None);
        prop_assert!(wire.is_empty());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut decoder = Decoder::new();
        let mut wire = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decoder.decode(&mut wire) {}
    }

    #[test]
    fn damaged_frames_do_not_make_it_panic(
        frames in proptest::collection::vec(frame(), 1..6),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut encoder, mut decoder, mut wire) = (Encoder::new(), Decoder::new(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut wire);
        }
        for (at, value) in damage {
            let at = at.index(wire.len());
            wire[at] = value;
        }
        while let Ok(Some(_)) = decoder.decode(&mut wire) {}
    }
}

#[test]
fn the_bytes_of_a_long_data_frame_are_passed_on_as_they_come() {
    let mut wire = BytesMut::from(&[0, 0, 0, 5, 1, 0, 0, 4, b'a', b'b'][..]);
    let mut decoder = Decoder::new();
    let data = |fin, text: &'static str| Frame::Data {
        stream: 5,
        fin,
        bytes: Bytes::from(text),
    };
    assert_eq!(decoder.decode(&mut wire).unwrap(), Some(data(false, "ab")));
    assert_eq!(decoder.decode(&mut wire).unwrap(), None);
    wire.extend_from_slice(b"cd");
    assert_eq!(decoder.decode(&mut wire).unwrap(), Some(data(true, "cd")));
}

#[test]
fn an_empty_data_frame_carries_the_end() {
    let mut wire = BytesMut::from(&[0, 0, 0, 5, 1, 0, 0, 0][..]);
    let end = Frame::Data {
        stream: 5,
        fin: true,
        bytes: Bytes::new(),
    };
    assert_eq!(Decoder::new().decode(&mut wire).unwrap(), Some(end));
}

#[test]
fn http2_is_told_apart() {
    let mut wire = BytesMut::from(&[0x80, 2, 0, 1, 0, 0, 0, 0][..]);
    assert_eq!(Decoder::new().decode(&mut wire), Err(ProtocolError::Version(2)));
}
