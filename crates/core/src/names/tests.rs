use std::net::IpAddr;

use super::*;
use crate::cluster::{AddressFamily, ClusterConfig, Endpoint, Family, ServicePort};
use crate::{NodeName, compute};

fn service(addresses: &[&str]) -> Service {
    let ports = vec![ServicePort {
        name: "http".into(),
        protocol: crate::cluster::Protocol::Tcp,
        port: std::num::NonZeroU16::MIN,
    }];
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Service::new(addresses, ports).unwrap()
}

fn slice(of: &ObjectName, addresses: impl Iterator<Item = IpAddr>) -> EndpointSlice {
    let endpoints = addresses.map(|address| Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hostname: None,
    });
    let family = AddressFamily::Ip(Family::V4);
    EndpointSlice::new(Some(of.clone()), family, Vec::new(), endpoints.collect()).unwrap()
}

fn with_dns() -> Cluster {
    Cluster::new(ClusterConfig {
        dns: Some(DnsConfig::default()),
        ..ClusterConfig::default()
    })
}

fn names(cluster: &Cluster) -> Arc<Names> {
    let state = compute(cluster, &NodeName::new("node1").unwrap());
    state.names.unwrap()
}

#[test]
fn without_dns_to_serve_there_are_no_names() {
    let state = compute(&Cluster::default(), &NodeName::new("node1").unwrap());
    assert_eq!(state.names, None);
}

#[test]
fn services_are_found_by_their_labels() {
    let mut cluster = with_dns();
    let web = ObjectName::new("default", "web");
    cluster.services.insert(web, Ok(service(&["10.96.0.1"])));
    let names = names(&cluster);
    let found = names.service(b"\x03web\x07default").unwrap();
    assert_eq!(found.namespace(), b"\x07default");
    assert!(names.has_namespace(b"\x07default") && !names.has_namespace(b"\x05other"));
    assert!(names.service(b"\x03web\x05other").is_none());
    assert_eq!(names.at("10.96.0.1".parse().unwrap()).len(), 1);
    assert_eq!(names.at("10.96.0.2".parse().unwrap()).len(), 0);
}

#[test]
fn what_dns_cannot_say_is_told() {
    let mut cluster = with_dns();
    let long = ObjectName::new("default", "a".repeat(64));
    cluster.services.insert(long, Ok(service(&["10.96.0.1"])));
    let state = compute(&cluster, &NodeName::new("node1").unwrap());
    assert!(state.names.unwrap().is_empty());
    assert_eq!(
        state.problems[0].why,
        "its name or its namespace's is no DNS label; it has no records"
    );
}

#[test]
fn of_two_services_with_one_address_the_first_has_its_reverse_name() {
    let mut cluster = with_dns();
    for name in ["a", "b"] {
        cluster
            .services
            .insert(ObjectName::new("default", name), Ok(service(&["10.96.0.1"])));
    }
    let names = names(&cluster);
    let holders: Vec<_> = names.at("10.96.0.1".parse().unwrap()).collect();
    assert_eq!(holders.len(), 1);
    assert_eq!(&**holders[0].service.key(), b"\x01a\x07default");
}

#[test]
fn the_names_say_what_they_are() {
    let mut cluster = with_dns();
    let web = ObjectName::new("default", "web");
    let mut headless = service(&[]);
    headless.resolution = Resolution::Endpoints;
    cluster.services.insert(web.clone(), Ok(headless));
    let addresses = ["10.0.0.2", "10.0.0.1"].map(|text| text.parse().unwrap());
    cluster
        .slices
        .insert(web.clone(), Ok(slice(&web, addresses.into_iter())));
    insta::assert_snapshot!(names(&cluster), @r"
    zone cluster.local.
    name web.default. _http._tcp:1
      10-0-0-1 10.0.0.1
      10-0-0-2 10.0.0.2
    ");
}
