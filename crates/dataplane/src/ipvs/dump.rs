//! Virtual services and the sets that lead to them, in the model's words.

use std::net::SocketAddr;

use podnet_core::cluster::Family;
use podnet_linux::ipvs::Virtual;

use super::change::Holding;
use super::render::{frontend, of_frontend, of_node_port};
use crate::iptables::{Found, carried, dump, is_guarded};
use crate::services::share::{self, Audience};
use crate::services::{Fate, Services, Target};

/// What is done by IPVS, and beside it.
pub(super) fn services(found: &Found, holding: &Holding) -> Services {
    let mut services = dump::services(found);
    let fate = |key: Virtual| {
        let weights = holding.get(&key)?.weights.iter();
        let chosen: Vec<SocketAddr> = weights
            .filter(|(_, weight)| **weight > 0)
            .map(|(socket, _)| *socket)
            .collect();
        (!chosen.is_empty()).then_some(Fate::Balance(chosen))
    };
    let target = |guarded, fate| Target {
        guarded,
        sticky: false,
        fate,
    };
    for family in [Family::V4, Family::V6] {
        for audience in [Audience::Everybody, Audience::Outside] {
            for element in carried(found, "", audience, family) {
                let frontend = address(element).and_then(frontend);
                let fate = frontend.and_then(|frontend| fate(of_frontend(&frontend)));
                let (Some(frontend), Some(fate)) = (frontend, fate) else {
                    continue;
                };
                let target = target(is_guarded(found, element), fate);
                match audience {
                    Audience::Everybody => services.frontends.insert(frontend, target),
                    Audience::Outside => services.outside.insert(frontend, target),
                };
            }
            for element in carried(found, "PORT", audience, family) {
                let node_port = element.mark.and_then(|mark| share::node_port(family, mark));
                let fate = node_port.and_then(|node_port| fate(of_node_port(&node_port)));
                let (Some(node_port), Some(fate)) = (node_port, fate) else {
                    continue;
                };
                match audience {
                    Audience::Everybody => services.node_ports.insert(node_port, target(false, fate)),
                    Audience::Outside => services.outside_ports.insert(node_port, target(false, fate)),
                };
            }
        }
    }
    services
}

fn address(element: &podnet_linux::netfilter::ipset::Element) -> Option<Virtual> {
    let (protocol, port) = element.port?;
    Some(Virtual::Address {
        address: element.net.addr(),
        protocol,
        port,
    })
}
