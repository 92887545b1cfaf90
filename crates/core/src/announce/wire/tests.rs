use proptest::prelude::*;

use super::*;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

fn question(frame: &[u8]) -> Question {
    match read(frame) {
        Some(Heard::Question(question)) => question,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_arp_request_as_linux_sends_it_is_answered_to_whoever_asked() {
    let asked = hex(
        "ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 c0000201 000000000000 c0000207",
    );
    let question = question(&asked);
    assert_eq!(question.target, IpAddr::from([192, 0, 2, 7]));
    let answered = hex(
        "020000000002 020000000001 0806 0001 0800 06 04 0002 020000000001 c0000207 020000000002 c0000201",
    );
    assert_eq!(answer(&question, OWN).unwrap(), answered);
}

#[test]
fn a_probe_is_answered_and_an_announcement_is_not() {
    let probe = hex(
        "ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 00000000 000000000000 c0000207",
    );
    assert!(answer(&question(&probe), OWN).is_some());
    let told = announcement(IpAddr::from([192, 0, 2, 7]), OTHER);
    assert_eq!(
        told,
        hex(
            "ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 c0000207 000000000000 c0000207"
        )
    );
    assert_eq!(read(&told), None);
    // Nor is a reply.
    let reply = answer(&question(&probe), OTHER).unwrap();
    assert_eq!(read(&reply), None);
}

/// As Linux sends it: fe80::ff:fe00:2 asks for 2001:db8::7.
fn solicitation(source: Ipv6Addr, option: bool) -> Vec<u8> {
    let target: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let group = solicited_node(target);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if option {
        message.extend([SOURCE_LINK_ADDRESS, 1]);
        message.extend(OTHER.0);
    }
    let sum = checksum(source, group, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(Mac([0x33, 0x33, 0xff, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 9]), IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

#[test]
fn a_solicitation_is_answered_to_the_address_it_names() {
    let asker: Ipv6Addr = "fe80::2".parse().unwrap();
    let asked = solicitation(asker, true);
    let question = question(&asked);
    assert_eq!(question.target, "2001:db8::7".parse::<IpAddr>().unwrap());
    let answered = answer(&question, OWN).unwrap();
    assert_eq!(answered[..6], OTHER.0);
    let message = &answered[ETHERNET + IPV6_HEADER..];
    assert_eq!((message[0], message[4]), (ADVERTISEMENT, SOLICITED | OVERRIDE));
    assert_eq!(message[24..], [TARGET_LINK_ADDRESS, 1, 2, 0, 0, 0, 0, 1]);
    assert_eq!(checksum("2001:db8::7".parse().unwrap(), asker, message), 0);
}

#[test]
fn duplicate_address_detection_is_answered_to_all() {
    let asked = solicitation(Ipv6Addr::UNSPECIFIED, false);
    let answered = answer(&question(&asked), OWN).unwrap();
    assert_eq!(answered[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(answered[ETHERNET + IPV6_HEADER + 4], OVERRIDE);
}

#[test]
fn what_came_over_a_router_or_is_broken_asks_nothing() {
    let asker = "fe80::2".parse().unwrap();
    let mut routed = solicitation(asker, true);
    routed[ETHERNET + 7] = 254;
    assert_eq!(read(&routed), None);
    let mut broken = solicitation(asker, true);
    broken[ETHERNET + IPV6_HEADER + 20] ^= 1;
    assert_eq!(read(&broken), None, "the checksum");
    let mut endless = solicitation(asker, true);
    endless[ETHERNET + IPV6_HEADER + 25] = 0;
    assert_eq!(read(&endless), None, "an option of no length");
}

#[test]
fn the_group_for_solicitations_has_the_last_three_octets() {
    let group = solicited_node("2001:db8::12:3456".parse().unwrap());
    assert_eq!(group, "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
}

fn any_heartbeat() -> impl Strategy<Value = Heartbeat> {
    let standing = prop_oneof![
        Just(None),
        Just(Some(Standing::Behind)),
        Just(Some(Standing::InForce))
    ];
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
        (0x2000_u16..0x3fff, any::<u16>())
            .prop_map(|(high, low)| IpAddr::from(Ipv6Addr::new(high, 0, 0, 0, 0, 0, 0, low))),
    ];
    ("[a-z0-9]{1,63}", address, standing, any::<u32>()).prop_map(|(name, address, standing, taken)| {
        Heartbeat {
            taken,
            node: NodeName::new(name).unwrap(),
            address,
            standing,
        }
    })
}

proptest! {
    #[test]
    fn heartbeats_are_read_as_they_were_written_with_padding_too(heartbeat in any_heartbeat(), padding in 0usize..40) {
        let mut frame = heartbeat.write(OWN);
        frame.resize(frame.len() + padding, 0);
        prop_assert_eq!(read(&frame), Some(Heard::Heartbeat(heartbeat)));
    }

    #[test]
    fn no_frame_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0usize..4, from in 0usize..3) {
        read(&bytes);
        // A right one, cut and with octets changed.
        let sound = [
            solicitation("fe80::2".parse().unwrap(), true),
            announcement(IpAddr::from([192, 0, 2, 7]), OTHER),
            Heartbeat { node: NodeName::new("n").unwrap(), address: IpAddr::from([1, 2, 3, 4]), standing: None, taken: 7 }.write(OWN),
        ];
        let mut frame = sound[from].clone();
        for (at, byte) in bytes.iter().enumerate().step_by(7) {
            let length = frame.len();
            frame[(at * 13 + kind) % length] ^= byte;
        }
        frame.truncate(frame.len() - kind * 9);
        if let Some(Heard::Question(question)) = read(&frame) {
            answer(&question, OWN);
        }
    }
}
