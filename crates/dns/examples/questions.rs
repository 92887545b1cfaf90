//! How many questions are answered in a second of CPU time, without the sockets: `cargo xtask bench` runs it.
//!
//! The cluster has 10,000 services and 50,000 endpoints. Each round asks all kinds of questions in turn, for names all
//! over the zone.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, DnsConfig, Endpoint, EndpointPort, EndpointSlice, Family,
    ObjectName, Protocol, Resolution, Service, ServicePort,
};
use podnet_dns::{Context, Outcome, Transport, respond};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 5;
const NAMESPACES: u32 = 100;
/// One in so many services is headless.
const HEADLESS: u32 = 10;

fn name(index: u32) -> ObjectName {
    ObjectName::new(format!("team-{}", index % NAMESPACES), format!("backend-{index}"))
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig {
        dns: Some(DnsConfig::default()),
        ..ClusterConfig::default()
    });
    let number = NonZeroU16::new(80).unwrap();
    for index in 0..SERVICES {
        let headless = index % HEADLESS == 0;
        let address = IpAddr::V4(Ipv4Addr::from(0x0a60_0001 + index));
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: number,
        };
        let addresses = if headless { vec![] } else { vec![address] };
        let mut service = Service::new(addresses, vec![port]).unwrap();
        if headless {
            service.resolution = Resolution::Endpoints;
        }
        cluster.services.insert(name(index), Ok(service));
        let endpoints = (0..ENDPOINTS).map(|number| Endpoint {
            address: Ipv4Addr::from(0x0af4_0001 + index * ENDPOINTS + number).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hostname: headless.then(|| format!("backend-{number}").into()),
        });
        let port = EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Some(number),
        };
        let family = AddressFamily::Ip(Family::V4);
        let slice = EndpointSlice::new(Some(name(index)), family, vec![port], endpoints.collect());
        cluster.slices.insert(name(index), Ok(slice.unwrap()));
    }
    cluster
}

/// A question with an OPT record, as resolvers ask.
fn question(text: &str, rtype: u16) -> Vec<u8> {
    let name: podnet_core::cluster::DomainName = text.parse().unwrap();
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    bytes.extend(name.wire());
    bytes.extend(rtype.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// A kind of question: what it is called, and for a service's number the name and the type.
type Kind = (&'static str, fn(u32) -> (String, u16));

const KINDS: [Kind; 7] = [
    ("A", |index| (service(index), 1)),
    ("AAAA, of which there is none", |index| (service(index), 28)),
    ("no such name (search list)", |index| {
        (format!("{}.team-1.svc.cluster.local", service(index)), 1)
    }),
    ("A of a headless service", |index| {
        (service(index / HEADLESS * HEADLESS), 1)
    }),
    ("A of an endpoint's hostname", |index| {
        (format!("backend-3.{}", service(index / HEADLESS * HEADLESS)), 1)
    }),
    ("SRV", |index| (format!("_http._tcp.{}", service(index)), 33)),
    ("PTR", |index| {
        let [a, b, c, d] = (0x0a60_0001 + index).to_be_bytes();
        (format!("{d}.{c}.{b}.{a}.in-addr.arpa"), 12)
    }),
];

fn service(index: u32) -> String {
    let name = name(index);
    format!("{}.{}.svc.cluster.local", name.name, name.namespace)
}

/// Resident memory in bytes.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}

/// The CPU time this thread has had: what else runs on the machine does not show in it.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).map_or(1.0, |text| text.parse().unwrap());
    let cluster = cluster();
    let before = memory();
    let names = podnet_core::names::of(&cluster).unwrap();
    let table = (memory() - before) / f64::from(1 << 20);
    let made = std::iter::repeat_with(|| {
        let start = cpu_time();
        black_box(podnet_core::names::of(&cluster));
        cpu_time() - start
    });
    let made = made.take(5).min().unwrap_or_default();

    let mut figures = Vec::new();
    for (kind, of) in KINDS {
        // A thousand names, far from each other in memory.
        let questions: Vec<Vec<u8>> = (0..1000)
            .map(|index| of(index * 7919 % SERVICES))
            .map(|(text, rtype)| question(&text, rtype))
            .collect();
        let mut context = Context {
            names: &names,
            serial: 1,
            turn: 0,
            searches: &[],
        };
        let mut out = Vec::with_capacity(1232);
        let (mut count, start, used) = (0_u32, Instant::now(), cpu_time());
        while start.elapsed() < Duration::from_secs_f64(seconds) {
            for bytes in &questions {
                context.turn = context.turn.wrapping_add(1);
                let outcome = respond(black_box(bytes), Transport::Udp, &context, &mut out);
                // PTR of a headless service's number is nobody's here.
                assert!(matches!(outcome, Outcome::Answered | Outcome::Outside));
                black_box(&out);
                count += 1;
            }
        }
        let rate = f64::from(count) / (cpu_time() - used).as_secs_f64();
        figures.push(format!("{{\"kind\":\"{kind}\",\"per_second\":{rate:.0}}}"));
    }
    println!(
        "{{\"table_mebibytes\":{table:.1},\"table_made_in_milliseconds\":{:.1},\"questions\":[{}]}}",
        made.as_secs_f64() * 1000.0,
        figures.join(",")
    );
}
