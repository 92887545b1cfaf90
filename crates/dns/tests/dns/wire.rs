//! Messages: sizes, flags, EDNS, and what is no question.

use std::collections::BTreeSet;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{A, AAAA, AXFR, PTR, SOA, SRV};
use podnet_core::cluster::DnsConfig;
use podnet_core::names::Names;
use podnet_dns::{Context, Outcome, Transport, respond, servfail};
use proptest::prelude::*;

use crate::ask::{context, question, send};
use crate::cluster::{empty, headless, names, service, slice};

fn table(endpoints: usize) -> Names {
    let mut cluster = empty(DnsConfig::default());
    service(&mut cluster, "default/web", &["10.96.0.1"], &["http/tcp/80"]);
    headless(&mut cluster, "default/many", &["http/tcp/80"]);
    let addresses: Vec<String> = (0..endpoints)
        .map(|host| format!("10.244.{}.{}", host / 250, host % 250 + 1))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    for (index, addresses) in addresses.chunks(1000).enumerate() {
        let name = format!("default/many-{index}");
        slice(&mut cluster, &name, "default/many", &["http/tcp/80"], addresses);
    }
    names(&cluster)
}

const WEB: &str = "web.default.svc.cluster.local.";
const MANY: &str = "many.default.svc.cluster.local.";

#[test]
fn datagrams_have_the_size_that_was_asked_for() {
    let names = table(200);
    for (edns, limit) in [
        (None, 512),
        (Some(100), 512),
        (Some(900), 900),
        (Some(1232), 1232),
        (Some(65535), 1232),
    ] {
        let answer = send(&question(MANY, A, edns), Transport::Udp, &context(&names));
        assert!(answer.message.metadata.truncation);
        // An address takes 16 bytes: there was no room for another.
        assert!(
            answer.bytes.len() <= limit && answer.bytes.len() + 16 > limit,
            "{edns:?} {}",
            answer.bytes.len()
        );
    }
    let answer = send(&question(MANY, A, None), Transport::Tcp, &context(&names));
    assert_eq!(
        (answer.message.metadata.truncation, answer.answers().len()),
        (false, 200)
    );
}

#[test]
fn missing_additional_records_are_no_truncation() {
    let names = table(8);
    let name = format!("_http._tcp.{MANY}");
    let answer = send(&question(&name, SRV, None), Transport::Udp, &context(&names));
    assert!(answer.answers().len() < 8 && answer.message.metadata.truncation);
    let answer = send(&question(&name, SRV, Some(620)), Transport::Udp, &context(&names));
    assert_eq!(
        (answer.answers().len(), answer.message.metadata.truncation),
        (8, false)
    );
    assert!(answer.additionals().len() < 8);
    let answer = send(&question(&name, SRV, None), Transport::Tcp, &context(&names));
    assert_eq!((answer.answers().len(), answer.additionals().len()), (8, 8));
}

#[test]
fn the_largest_answers_are_whole_or_say_that_they_are_not() {
    // Additional records' owners are beyond the reach of pointers.
    let names = table(700);
    let name = format!("_http._tcp.{MANY}");
    let answer = send(&question(&name, SRV, None), Transport::Tcp, &context(&names));
    assert_eq!((answer.answers().len(), answer.additionals().len()), (700, 560));
    for record in &answer.additionals() {
        let dashed = record.split('.').next().unwrap();
        assert!(record.ends_with(&dashed.replace('-', ".")), "{record}");
    }
    let names = table(5000);
    let answer = send(&question(MANY, A, Some(1232)), Transport::Tcp, &context(&names));
    assert!(answer.message.metadata.truncation && answer.bytes.len() > 65000);
}

#[test]
fn endpoints_come_in_changing_order() {
    let names = table(5);
    let mut firsts = BTreeSet::new();
    for turn in 0..10 {
        let context = Context {
            turn,
            ..context(&names)
        };
        let answer = send(&question(MANY, A, None), Transport::Udp, &context);
        let distinct: BTreeSet<String> = answer.answers().into_iter().collect();
        assert_eq!(distinct.len(), 5);
        firsts.insert(answer.answers()[0].clone());
    }
    assert_eq!(firsts.len(), 5);
}

#[test]
fn edns_is_answered_with_edns() {
    let names = table(1);
    let plain = send(&question(WEB, A, None), Transport::Udp, &context(&names));
    assert!(plain.message.edns.is_none());
    let mut message = Message::from_vec(&question(WEB, A, Some(4096))).unwrap();
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    let mut bytes = message.to_vec().unwrap();
    // A cookie (RFC 7873) in it: the last two bytes are the length of the options.
    let end = bytes.len();
    bytes.splice(end - 2.., [0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let answer = send(&bytes, Transport::Udp, &context(&names));
    assert_eq!(
        answer.answers(),
        ["web.default.svc.cluster.local. 5 IN A 10.96.0.1"]
    );
    let edns = answer.message.edns.unwrap();
    assert_eq!(
        (edns.max_payload(), edns.version(), edns.flags().dnssec_ok),
        (1232, 0, true)
    );
}

#[test]
fn other_versions_of_edns_are_told_so() {
    let names = table(1);
    let mut message = Message::from_vec(&question(WEB, A, Some(4096))).unwrap();
    message.edns.as_mut().unwrap().set_version(1);
    let answer = send(&message.to_vec().unwrap(), Transport::Udp, &context(&names));
    // BADVERS is 16: one in the upper bits.
    let edns = answer.message.edns.as_ref().unwrap();
    assert_eq!(
        (edns.version(), edns.rcode_high(), answer.bytes[3] & 0xf),
        (0, 1, 0)
    );
    assert_eq!(answer.answers().len(), 0);
}

#[test]
fn flags_are_the_questions_where_they_should_be() {
    let names = table(1);
    let mut bytes = question(WEB, A, None);
    // RD off; TC, RA, Z and AD on, which mean nothing in a question; CD on.
    bytes[2] = 0x02;
    bytes[3] = 0xf0;
    let answer = send(&bytes, Transport::Udp, &context(&names));
    assert_eq!(answer.bytes[2..4], [0x84, 0x10]);
    let answer = send(&question(WEB, A, None), Transport::Udp, &context(&names));
    assert_eq!(answer.bytes[2..4], [0x85, 0x00]);
}

#[test]
fn what_is_no_question_is_told_so_or_passed_over() {
    let names = table(1);
    let context = context(&names);
    let good = question(WEB, A, Some(1232));
    let rcode = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let mut out = vec![1, 2, 3];
        match respond(&bytes, Transport::Udp, &context, &mut out) {
            Outcome::Silence => {
                assert!(out.is_empty());
                None
            }
            _ => Some(Message::from_vec(&out).unwrap().metadata.response_code),
        }
    };
    use ResponseCode::{FormErr, NotImp, Refused};
    assert_eq!(rcode(&|bytes| bytes[2] |= 0x80), None, "an answer");
    assert_eq!(rcode(&|bytes| bytes.truncate(11)), None, "no header");
    assert_eq!(rcode(&|bytes| bytes.truncate(12)), Some(FormErr), "no question");
    assert_eq!(rcode(&|bytes| bytes[5] = 0), Some(FormErr), "none announced");
    assert_eq!(rcode(&|bytes| bytes[5] = 2), Some(FormErr), "several questions");
    assert_eq!(rcode(&|bytes| bytes[2] |= 0x10), Some(NotImp), "STATUS");
    assert_eq!(rcode(&|bytes| bytes[2] |= 0x28), Some(NotImp), "UPDATE");
    assert_eq!(
        rcode(&|bytes| bytes[12] = 0xc0),
        Some(FormErr),
        "a pointer in the question"
    );
    assert_eq!(
        rcode(&|bytes| bytes[11] = 2),
        Some(FormErr),
        "a record that is not there"
    );
    assert_eq!(
        rcode(&|bytes| bytes[7] = 1),
        Some(FormErr),
        "two records announced, one there"
    );
    let opt = good[good.len() - 11..].to_vec();
    let twice = |bytes: &mut Vec<u8>| {
        bytes[11] = 2;
        bytes.extend(&opt);
    };
    assert_eq!(rcode(&twice), Some(FormErr), "two OPT records");
    let class = good.len() - 11 - 1;
    assert_eq!(rcode(&|bytes| bytes[class] = 3), Some(Refused), "class CH");
    let transfer = question("cluster.local.", AXFR, None);
    assert_eq!(
        send(&transfer, Transport::Tcp, &context).rcode(),
        Refused,
        "a zone's transfer"
    );
}

#[test]
fn before_the_cluster_is_known_nothing_is_denied() {
    let mut out = Vec::new();
    for (name, edns) in [(WEB, None), ("example.com.", Some(1232))] {
        assert_eq!(
            servfail(&question(name, AAAA, edns), Transport::Udp, &mut out),
            Outcome::Answered
        );
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(message.queries[0].name().to_ascii(), name);
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
    assert_eq!(servfail(b"", Transport::Udp, &mut out), Outcome::Silence);
}

#[test]
fn refusals_say_why_to_who_understands() {
    let names = table(1);
    let answer = send(
        &question("example.com.", A, Some(1232)),
        Transport::Udp,
        &context(&names),
    );
    let text = String::from_utf8_lossy(&answer.bytes).into_owned();
    assert!(
        text.ends_with("podnet answers the cluster's own names only"),
        "{text:?}"
    );
    assert!(answer.message.edns.is_some());
    let plain = send(
        &question("example.com.", A, None),
        Transport::Udp,
        &context(&names),
    );
    assert_eq!(plain.bytes.len(), question("example.com.", A, None).len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived_and_answered_within_bounds(
        start in prop::bool::ANY,
        cut in 0..120_usize,
        changes in prop::collection::vec((0..120_usize, any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let names = table(30);
        let mut bytes = if start { question(MANY, A, Some(1232)) } else { Vec::new() };
        bytes.truncate(cut);
        bytes.extend(&tail);
        for (at, byte) in changes {
            if let Some(it) = bytes.get_mut(at) {
                *it = byte;
            }
        }
        survives(&bytes, &names);
    }
}

/// Whatever the bytes, the answer is bounded, belongs to them, and is one that a library can read. Returns what kind of
/// answer it was.
fn survives(bytes: &[u8], names: &Names) -> String {
    let mut kinds = String::new();
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
        let mut out = Vec::new();
        let outcome = respond(bytes, transport, &context(names), &mut out);
        if outcome == Outcome::Silence {
            assert!(out.is_empty());
            return "silence".into();
        }
        assert!(out.len() <= limit && out[..2] == bytes[..2] && out[2] & 0x80 != 0);
        let message = Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"));
        assert!(message.queries.len() <= 1);
        kinds += &format!(
            "{outcome:?} {:?} {} {} {} ",
            message.metadata.response_code,
            message.metadata.truncation,
            message.answers.len().min(2),
            message.edns.is_some(),
        );
    }
    kinds
}

#[test]
fn fuzz_dns_message() {
    let names = table(30);
    let seeds = [
        question(MANY, A, Some(1232)),
        question(WEB, AAAA, None),
        question(&format!("_http._tcp.{MANY}"), SRV, Some(512)),
        question("10-244-0-1.default.pod.cluster.local.", A, Some(4096)),
        question("1.0.244.10.in-addr.arpa.", PTR, None),
        question("cluster.local.", SOA, None),
    ];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    let words = [
        "\u{3}web",
        "\u{7}default",
        "\u{3}svc",
        "\u{3}ip6",
        "\0\0)\u{4}",
        "_tcp",
    ];
    let (_, kinds) = podnet_fuzz::run("dns_message", &seeds, &words, |bytes| survives(bytes, &names));
    assert!(
        kinds > 8,
        "only {kinds} kinds of answers: the fuzzer does not get anywhere"
    );
}
