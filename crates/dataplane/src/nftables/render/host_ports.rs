//! Host ports: they lead into one pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_core::service::{HostAddress, ServiceState};

use super::super::model::{Base, Chain, Hook, Table, Value, Verdict};
use super::super::rule::{Clause, Rule};
use super::key::{host_port_key, socket_bytes};
use super::{FAMILIES, elements, entry, names, rule};

const FILTER: i32 = 0;

/// A host port of one address is like a service with one endpoint; one of all addresses is looked up by port alone,
/// once the kernel has said that the address is the node's.
pub(super) fn add(table: &mut Table, services: &ServiceState) {
    for (host_port, target) in &services.host_ports {
        let names = names(host_port.address.family());
        match host_port.frontend() {
            None => {
                let value = Value::Data(socket_bytes(*target));
                elements(table, names.host_ports).insert(host_port_key(host_port), value);
            }
            Some(frontend) => entry::single(table, &frontend, *target),
        }
    }
    if has_loopback_ports(services) {
        table.chains.insert("loopback-guard".into(), loopback_guard());
    }
}

/// The rules that look host ports of all the node's addresses up.
pub(super) fn translations(services: &ServiceState) -> impl Iterator<Item = Rule> {
    let has_host_ports = |family: &Family| {
        let any = HostAddress::Any(*family);
        let mut host_ports = services.host_ports.keys();
        host_ports.any(|host_port| host_port.address == any)
    };
    FAMILIES.into_iter().filter(has_host_ports).map(|family| {
        let translate = Clause::TranslateByPort(family, names(family).host_ports.into());
        rule([Clause::Family(family), Clause::DestinationIsLocal, translate])
    })
}

pub(super) fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
        Family::V6 => IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    }
}

pub(super) fn has_loopback_ports(services: &ServiceState) -> bool {
    let mut host_ports = services.host_ports.keys();
    services.has_node_ports_on_loopback() || host_ports.any(|host_port| host_port.address.is_on_loopback())
}

/// Links accept 127.0.0.0/8 where host ports or node ports are to work on it (`route_localnet`), which must not let
/// others reach what listens there: only answers may come in.
fn loopback_guard() -> Chain {
    let foreign = || Clause::CameNotBy("lo");
    let loopback = loopback(Family::V4);
    let verdict = Clause::Verdict;
    Chain {
        base: Some(Base {
            kind: "filter",
            hook: Hook::Input,
            priority: FILTER,
        }),
        rules: vec![
            rule([
                foreign(),
                Clause::DestinationWithin(loopback),
                Clause::Answers,
                verdict(Verdict::Accept),
            ]),
            rule([
                foreign(),
                Clause::DestinationWithin(loopback),
                verdict(Verdict::Drop),
            ]),
            rule([foreign(), Clause::SourceWithin(loopback), verdict(Verdict::Drop)]),
        ],
    }
}
