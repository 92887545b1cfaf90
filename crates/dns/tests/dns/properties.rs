//! Random clusters: every answer is the oracle's.

use std::collections::BTreeSet;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Record, RecordType};
use podnet_core::cluster::{Cluster, DnsConfig, Pod, PodRecords};
use podnet_dns::{Outcome, Transport};
use proptest::prelude::*;

use crate::ask::{context, question, send};
use crate::cluster::{alias, empty, headless, names, object, service, slice};
use crate::oracle;

const OBJECTS: [&str; 5] = ["a/web", "a/db", "b/web", "b/3x", "c/foo-1"];
const PORTS: [&str; 6] = [
    "http/tcp/80",
    "https/tcp/443",
    "dns/udp/53",
    "dns-tcp/tcp/53",
    "/tcp/9000",
    "s/sctp/7",
];
const TARGETS: [&str; 4] = [
    "www.example.com",
    "web.a.svc.cluster.local",
    "Nothing.A.svc.cluster.local",
    "db.a.svc.cluster.local",
];
const HOSTS: [&str; 4] = ["", "=web-0", "=web-1", "=10-0-0-1"];

#[derive(Debug, Clone)]
enum Kind {
    ClusterIps(u8, bool),
    Headless,
    Alias(usize),
}

#[derive(Debug, Clone)]
struct Endpoints {
    of: usize,
    six: bool,
    ports: Vec<usize>,
    each: Vec<(u8, usize, bool)>,
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let kind = prop_oneof![
        (1..5_u8, any::<bool>()).prop_map(|(host, dual)| Kind::ClusterIps(host, dual)),
        Just(Kind::Headless),
        // Aliases lead to the services before them only: the tests make no loops.
        (0..TARGETS.len()).prop_map(Kind::Alias),
    ];
    let ports = || prop::collection::btree_set(0..PORTS.len(), 0..3);
    let services = prop::collection::vec(
        prop::option::weighted(0.8, (kind, ports(), any::<bool>())),
        OBJECTS.len(),
    );
    let endpoints = (
        0..OBJECTS.len(),
        any::<bool>(),
        ports(),
        prop::collection::vec((1..5_u8, 0..HOSTS.len(), prop::bool::weighted(0.8)), 0..5),
    );
    let endpoints = endpoints.prop_map(|(of, six, ports, each)| Endpoints {
        of,
        six,
        ports: ports.into_iter().collect(),
        each,
    });
    let slices = prop::collection::vec(endpoints, 0..6);
    let pods = prop::collection::vec((0..OBJECTS.len(), 1..5_u8, any::<bool>()), 0..4);
    let mode = prop::sample::select(vec![PodRecords::Off, PodRecords::Insecure, PodRecords::Verified]);
    (services, slices, pods, mode).prop_map(|(services, slices, pods, mode)| {
        let mut cluster = empty(DnsConfig {
            pods: mode,
            servers: vec!["10.96.0.10".parse().unwrap()],
            ..DnsConfig::default()
        });
        for (name, made) in OBJECTS.iter().zip(services) {
            let Some((kind, ports, publish)) = made else {
                continue;
            };
            let ports: Vec<&str> = ports.into_iter().map(|port| PORTS[port]).collect();
            match kind {
                Kind::ClusterIps(host, dual) => {
                    let (four, six) = (format!("10.96.0.{host}"), format!("fd00:96::{host}"));
                    let both = [four.as_str(), six.as_str()];
                    service(&mut cluster, name, &both[..1 + usize::from(dual)], &ports);
                }
                // a/web and a/db are no aliases, as they are what aliases lead to.
                Kind::Alias(target) if !name.starts_with("a/") => alias(&mut cluster, name, TARGETS[target]),
                Kind::Headless | Kind::Alias(_) => headless(&mut cluster, name, &ports),
            }
            let service = cluster.services.get_mut(&object(name)).unwrap();
            service.as_mut().unwrap().publish_not_ready = publish;
        }
        for (index, made) in slices.iter().enumerate() {
            let ports: Vec<&str> = made.ports.iter().map(|&port| PORTS[port]).collect();
            let each = made.each.iter().map(|&(host, name, ready)| {
                let mark = if ready { "" } else { "!" };
                if made.six {
                    format!("{mark}fd00::{host}{}", HOSTS[name])
                } else {
                    format!("{mark}10.0.0.{host}{}", HOSTS[name])
                }
            });
            let each: Vec<String> = each.collect();
            let each: Vec<&str> = each.iter().map(String::as_str).collect();
            slice(
                &mut cluster,
                &format!("any/slice-{index}"),
                OBJECTS[made.of],
                &ports,
                &each,
            );
        }
        for (index, (of, host, host_network)) in pods.into_iter().enumerate() {
            let namespace = object(OBJECTS[of]).namespace;
            let mut pod = Pod::new(object(&format!("{namespace}/pod-{index}")));
            pod.addresses = vec![format!("10.0.0.{host}").parse().unwrap()];
            pod.host_network = host_network;
            cluster.pods.insert(pod.name.clone(), Ok(pod));
        }
        cluster
    })
}

/// Names that have records, names like them, and names between.
fn questions(records: &BTreeSet<oracle::Record>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (owner, ..) in records {
        let mut rest = owner.as_str();
        names.insert(format!("x.{owner}"));
        names.insert(format!("_tcp.{owner}"));
        while !rest.is_empty() && rest != "local." && rest != "arpa." {
            names.insert(rest.to_owned());
            rest = rest.split_once('.').unwrap().1;
        }
    }
    for more in [
        "nobody.a.svc",
        "a.svc",
        "d.svc",
        "_http._tcp.web.a.svc",
        "web-0.db.a.svc",
        "10-0-0-1.web.a.svc",
        "10-0-0-1.a.pod",
        "10-0-0-9.d.pod",
        "d.pod",
        "pod",
        "fd00--1.b.pod",
        "_.web.a.svc",
        "_dns._udp.db.a.svc",
    ] {
        names.insert(format!("{more}.cluster.local."));
    }
    names
}

const TYPES: [(RecordType, &str); 8] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::SRV, "SRV"),
    (RecordType::PTR, "PTR"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::TXT, "TXT"),
    (RecordType::NS, "NS"),
    (RecordType::SOA, "SOA"),
];

/// As the oracle writes records.
fn records(section: &[Record]) -> Result<BTreeSet<oracle::Record>, TestCaseError> {
    let mut set = BTreeSet::new();
    for record in section {
        let (_, word) = TYPES
            .iter()
            .find(|(rtype, _)| *rtype == record.record_type())
            .ok_or_else(|| TestCaseError::fail(format!("{record}")))?;
        let owner = record.name.to_ascii().to_ascii_lowercase();
        let new = set.insert((owner, *word, record.data.to_string()));
        prop_assert!(new, "twice: {}", record);
    }
    Ok(set)
}

/// With every second letter in upper case, by `seed`.
fn mixed(name: &str, seed: u64) -> String {
    let letters = name.chars().enumerate();
    letters
        .map(|(at, letter)| {
            if seed >> (at % 64) & 1 == 1 {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_oracles(cluster in cluster(), seed in any::<u64>(), turn in any::<u32>()) {
        let table = names(&cluster);
        let all = oracle::records(&cluster);
        let mut context = context(&table);
        context.turn = turn;
        for name in questions(&all) {
            for (rtype, word) in TYPES {
                let wanted = oracle::expected(&cluster, &all, &name, word);
                let cased = mixed(&name, seed);
                let answer = send(&question(&cased, rtype, None), Transport::Tcp, &context);
                let about = format!("{name} {word}: {:?}", answer.message);
                prop_assert_eq!(
                    answer.message.queries[0].name().to_ascii(), cased, "the case is kept: {}", about
                );
                let mut got = records(&answer.message.answers)?;
                // Aliases keep the case of their targets.
                got = got.into_iter().collect();
                prop_assert_eq!(&got, &wanted.answers, "{}", about);
                let refused = wanted.outside && wanted.answers.is_empty();
                let rcode = match (refused, wanted.exists) {
                    (true, _) => ResponseCode::Refused,
                    (false, true) => ResponseCode::NoError,
                    (false, false) => ResponseCode::NXDomain,
                };
                prop_assert_eq!(answer.rcode(), rcode, "{}", about);
                prop_assert_eq!(answer.outcome != Outcome::Answered, wanted.outside, "{}", about);
                prop_assert_eq!(records(&answer.message.additionals)?, wanted.additionals, "{}", about);
                let last = wanted.answers.iter().any(|record| record.1 == word);
                let negative = !wanted.outside && !last;
                prop_assert_eq!(answer.message.authorities.len(), usize::from(negative), "{}", about);
            }
        }
    }
}
