//! Our table, in the model's words.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use podnet_core::cluster::Family;

use super::found::Found;
use super::model::{Key, Value, Verdict};
use super::render::{
    OUTSIDE, names, read_endpoint, read_frontend, read_host_port, read_node_port, read_number, read_socket,
    split_address,
};
use crate::services::{Fate, Services, Target};

impl Services {
    pub(super) fn from_found(found: &Found) -> Self {
        let mut services = Services::default();
        for family in [Family::V4, Family::V6] {
            services.read(&Reader { family, found });
        }
        services
    }

    fn read(&mut self, reader: &Reader<'_>) {
        let (family, names) = (reader.family, names(reader.family));
        let frontend = |key: &[u8]| Some(read_frontend(family, key)?.0);
        let node_port = |key: &[u8]| Some(read_node_port(family, key)?.0);
        self.frontends
            .extend(reader.targets(names.services, names.endpoints, 0, frontend));
        self.outside
            .extend(reader.targets(names.outside, names.endpoints, OUTSIDE, frontend));
        self.node_ports
            .extend(reader.targets(names.node_ports, names.port_endpoints, 0, node_port));
        self.outside_ports.extend(reader.targets(
            names.outside_ports,
            names.port_endpoints,
            OUTSIDE,
            node_port,
        ));
        let addresses = reader.elements(names.cluster_ips);
        let addresses = addresses.filter_map(|(key, _)| split_address(family, key));
        self.cluster_ips.extend(addresses.map(|(address, _)| address));
        let host_ports = reader
            .elements(names.host_ports)
            .filter_map(|(key, value)| match value {
                Value::Data(data) => Some((read_host_port(family, key)?, read_socket(family, data)?)),
                _ => None,
            });
        self.host_ports.extend(host_ports);
    }
}

/// Reads the sets of one family.
struct Reader<'a> {
    family: Family,
    found: &'a Found,
}

impl<'a> Reader<'a> {
    fn elements(&self, set: &str) -> impl Iterator<Item = (&'a Key, &'a Value)> + use<'a> {
        self.found.elements.get(set).into_iter().flatten()
    }

    /// What the elements of a verdict map lead to. Endpoints are those in `endpoints` under the element's own key and a
    /// number from `first`, or the ones of the service port whose chain the verdict names.
    fn targets<K: Ord>(
        &self,
        verdicts: &str,
        endpoints: &str,
        first: u32,
        read: impl Fn(&[u8]) -> Option<K>,
    ) -> BTreeMap<K, Target> {
        let mut by_key: BTreeMap<&[u8], Vec<SocketAddr>> = BTreeMap::new();
        for (key, value) in self.elements(endpoints) {
            let Some((key, number)) = key.split_last_chunk::<4>() else {
                continue;
            };
            let wanted = read_number(number).is_some_and(|number| (number >= OUTSIDE) == (first >= OUTSIDE));
            if let (true, Value::Data(data)) = (wanted, value) {
                by_key
                    .entry(key)
                    .or_default()
                    .extend(read_socket(self.family, data));
            }
        }
        // Where the client's hash chooses, every endpoint has many numbers.
        by_key.values_mut().for_each(distinct);
        let targets = self.elements(verdicts).filter_map(|(key, value)| {
            let mut own = by_key.get(key.as_slice()).cloned().unwrap_or_default();
            let target = match value {
                Value::Verdict(Verdict::Goto(chain)) => {
                    let port = chain.split_once('-').map_or("", |(_, port)| port);
                    let (guarded, named) = (chain.starts_with("sources"), chain.starts_with("sticky"));
                    let sticky = named || guarded && own.is_empty() && !self.choices(port).is_empty();
                    if sticky {
                        own = self.choices(port);
                    }
                    let fate = if own.is_empty() {
                        Fate::Refuse
                    } else {
                        Fate::Balance(own)
                    };
                    Target {
                        guarded,
                        sticky,
                        fate,
                    }
                }
                _ => Target {
                    guarded: false,
                    sticky: false,
                    fate: Fate::Drop,
                },
            };
            Some((read(key)?, target))
        });
        targets.collect()
    }

    /// The endpoints among which a service port chooses whose clients stay.
    fn choices(&self, port: &str) -> Vec<SocketAddr> {
        let set = format!("choice{}-{port}", super::model::digit(self.family));
        let endpoints = self.elements(&set).filter_map(|(_, value)| match value {
            Value::Verdict(Verdict::Goto(chain)) => read_endpoint(self.family, chain),
            _ => None,
        });
        let mut endpoints = endpoints.collect();
        distinct(&mut endpoints);
        endpoints
    }
}

fn distinct(endpoints: &mut Vec<SocketAddr>) {
    endpoints.sort_unstable();
    endpoints.dedup();
}
