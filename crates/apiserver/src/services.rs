//! Cluster IPs and node ports of Services, given synchronously as kube-apiserver does.
//!
//! Invariant: an address or a node port is given to one Service only. All writes of Services go through one lock
//! around [`Allocations`]; what a write took is given back when the write fails, what it freed is freed only after
//! it succeeded. The state is rebuilt from the store at start.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::kinds::FieldError;

/// Which addresses and node ports are taken.
#[derive(Debug)]
pub struct Allocations {
    ranges: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    taken_addresses: HashSet<IpAddr>,
    taken_ports: HashSet<u16>,
}

/// What one write took, and what is free once it has succeeded.
#[derive(Debug, Default)]
#[must_use = "a claim is settled with `succeeded` or `failed`"]
pub struct Claim {
    taken: Vec<Item>,
    freed: Vec<Item>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

/// Why a Service cannot have what it asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimError {
    /// Wrong fields (422).
    Invalid(Vec<FieldError>),
    /// Nothing left (500).
    Exhausted(String),
}

const NONE: &str = "None";

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = service["spec"][field].as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn is_headless(service: &Value) -> bool {
    text(service, "clusterIP") == NONE
}

fn has_addresses(service: &Value) -> bool {
    text(service, "type") != "ExternalName" && !is_headless(service)
}

fn has_node_ports(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn has_health_check_port(service: &Value) -> bool {
    text(service, "type") == "LoadBalancer" && text(service, "externalTrafficPolicy") == "Local"
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A random number; uuid is the crate's source of randomness.
fn random() -> u128 {
    uuid::Uuid::new_v4().as_u128()
}

impl Allocations {
    /// Nothing is taken; the first range's family is the cluster's default.
    pub fn new(ranges: Vec<IpNet>, ports: RangeInclusive<u16>) -> Allocations {
        Allocations {
            ranges,
            ports,
            taken_addresses: HashSet::new(),
            taken_ports: HashSet::new(),
        }
    }

    /// Takes what a stored Service has.
    pub fn restore(&mut self, service: &Value) {
        for item in items(service) {
            self.take(item);
        }
    }

    /// The first address of each range: the `kubernetes` Service.
    pub fn first_addresses(&self) -> Vec<IpAddr> {
        self.ranges.iter().filter_map(|range| nth(range, 1)).collect()
    }

    /// Gives a new Service its addresses and ports.
    pub fn create(&mut self, service: &mut Value) -> Result<Claim, ClaimError> {
        let mut claim = Claim::default();
        sync_first_address(service, None);
        let outcome = self.assign(service, None, &mut claim);
        self.settle(claim, outcome)
    }

    /// Gives a changed Service what it needs beyond what it has, and keeps what it has.
    pub fn update(&mut self, service: &mut Value, old: &Value) -> Result<Claim, ClaimError> {
        let mut claim = Claim::default();
        drop_what_the_type_lost(service, old);
        keep_allocated(service, old);
        sync_first_address(service, Some(old));
        let outcome = self.assign(service, Some(old), &mut claim);
        let kept = items(service);
        claim.freed = items(old)
            .into_iter()
            .filter(|item| !kept.contains(item))
            .collect();
        self.settle(claim, outcome)
    }

    /// The claim of a deletion.
    pub fn delete(&self, service: &Value) -> Claim {
        Claim {
            taken: Vec::new(),
            freed: items(service),
        }
    }

    /// The write is done.
    pub fn succeeded(&mut self, claim: Claim) {
        self.give_back(&claim.freed);
    }

    /// The write did not happen.
    pub fn failed(&mut self, claim: Claim) {
        self.give_back(&claim.taken);
    }

    fn settle(&mut self, claim: Claim, outcome: Result<(), ClaimError>) -> Result<Claim, ClaimError> {
        match outcome {
            Ok(()) => Ok(claim),
            Err(error) => {
                self.failed(claim);
                Err(error)
            }
        }
    }

    fn give_back(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Address(address) => self.taken_addresses.remove(address),
                Item::Port(port) => self.taken_ports.remove(port),
            };
        }
    }

    /// False if somebody has it.
    fn take(&mut self, item: Item) -> bool {
        match item {
            Item::Address(address) => self.taken_addresses.insert(address),
            Item::Port(port) => self.taken_ports.insert(port),
        }
    }

    fn assign(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        claim: &mut Claim,
    ) -> Result<(), ClaimError> {
        let owned = old.map(items).unwrap_or_default();
        if text(service, "type") != "ExternalName" {
            let families = self.families(service, old)?;
            if is_headless(service) {
                service["spec"]["clusterIPs"] = json!([NONE]);
            } else {
                self.assign_addresses(service, &families, &owned, claim)?;
            }
            service["spec"]["ipFamilies"] = json!(families);
        }
        if has_node_ports(service) {
            self.assign_node_ports(service, &owned, claim)?;
        }
        if has_health_check_port(service) {
            self.assign_health_check_port(service, &owned, claim)?;
        }
        Ok(())
    }

    /// Sets `ipFamilyPolicy` and answers the Service's families, in order.
    fn families(&self, service: &mut Value, old: Option<&Value>) -> Result<Vec<String>, ClaimError> {
        let configured: Vec<&str> = self.ranges.iter().map(|range| family_of(range.addr())).collect();
        let mut families = strings(service, "ipFamilies");
        let addresses: Vec<IpAddr> = strings(service, "clusterIPs")
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        let selectorless = is_headless(service)
            && service["spec"]["selector"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty);
        let default_policy = match () {
            () if selectorless => "RequireDualStack",
            () if addresses.len() == 2 || families.len() == 2 => "RequireDualStack",
            () => "SingleStack",
        };
        let policy = match text(service, "ipFamilyPolicy") {
            "" => default_policy,
            given => given,
        }
        .to_owned();
        let two = policy != "SingleStack";
        let narrowed = old.is_some_and(|old| text(old, "ipFamilyPolicy") != "SingleStack") && !two;
        if narrowed {
            families.truncate(1);
            if let Some(list) = service["spec"]["clusterIPs"].as_array_mut() {
                list.truncate(1);
            }
        }
        for (at, family) in families.iter().enumerate() {
            if !configured.contains(&family.as_str()) && !selectorless {
                let path = format!("spec.ipFamilies[{at}]");
                return Err(invalid(path, json!(family), "not configured on this cluster"));
            }
        }
        let addresses = addresses.iter().take(if narrowed { 1 } else { 2 });
        for address in addresses.skip(families.len()) {
            families.push(family_of(*address).to_owned());
        }
        if families.is_empty() {
            families.extend(configured.first().map(|family| (*family).to_owned()));
        }
        if families.len() == 2 && !two {
            let message =
                "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified";
            return Err(invalid("spec.ipFamilyPolicy", json!(policy), message));
        }
        if policy == "RequireDualStack" && configured.len() < 2 && !selectorless {
            let message = "this cluster is not configured for dual-stack services";
            return Err(invalid("spec.ipFamilyPolicy", json!(policy), message));
        }
        if two && families.len() == 1 && (configured.len() == 2 || selectorless) {
            let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
            families.push(other.to_owned());
        }
        service["spec"]["ipFamilyPolicy"] = policy.into();
        Ok(families)
    }

    fn assign_addresses(
        &mut self,
        service: &mut Value,
        families: &[String],
        owned: &[Item],
        claim: &mut Claim,
    ) -> Result<(), ClaimError> {
        let given = strings(service, "clusterIPs");
        let mut addresses = Vec::new();
        for (at, family) in families.iter().enumerate() {
            let address = match given.get(at).map(String::as_str) {
                None | Some("") => self.any_address(family)?,
                Some(text) => self.this_address(text, family, owned, &given)?,
            };
            let item = Item::Address(address);
            if !owned.contains(&item) {
                self.take(item);
                claim.taken.push(item);
            }
            addresses.push(address.to_string());
        }
        service["spec"]["clusterIP"] = json!(addresses.first());
        service["spec"]["clusterIPs"] = json!(addresses);
        Ok(())
    }

    /// A requested address, if it can be had.
    fn this_address(
        &self,
        text: &str,
        family: &str,
        owned: &[Item],
        given: &[String],
    ) -> Result<IpAddr, ClaimError> {
        let refuse = |why: String| {
            Err(invalid(
                "spec.clusterIPs",
                json!(given),
                &format!("failed to allocate IP {text}: {why}"),
            ))
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            return refuse("not a valid IP".to_owned());
        };
        if owned.contains(&Item::Address(address)) {
            return Ok(address);
        }
        let range = self.ranges.iter().find(|range| family_of(range.addr()) == family);
        let Some(range) = range.filter(|range| family_of(address) == family && usable(range, address)) else {
            let range = range.map(ToString::to_string).unwrap_or_default();
            return refuse(format!(
                "the provided IP ({text}) is not in the valid range. The range of valid IPs is {range}"
            ));
        };
        debug_assert!(range.contains(&address), "usable addresses are in the range");
        if self.taken_addresses.contains(&address) {
            return refuse("provided IP is already allocated".to_owned());
        }
        Ok(address)
    }

    /// A free address: from the range's upper band first, which leaves the lower one to those who ask by address.
    fn any_address(&self, family: &str) -> Result<IpAddr, ClaimError> {
        let range = self.ranges.iter().find(|range| family_of(range.addr()) == family);
        let range = range.ok_or_else(|| ClaimError::Exhausted(format!("no service range for {family}")))?;
        let size = usable_size(range);
        let band = static_band(size);
        let free = |index: u128| nth(range, index).filter(|address| !self.taken_addresses.contains(address));
        let start = random() % (size - band).max(1);
        let upper = (0..size - band).map(|step| band + 1 + (start + step) % (size - band));
        let found = { upper }.find_map(free).or_else(|| (1..=band).find_map(free));
        found.ok_or_else(|| ClaimError::Exhausted("failed to allocate a serviceIP: range is full".to_owned()))
    }

    fn assign_node_ports(
        &mut self,
        service: &mut Value,
        owned: &[Item],
        claim: &mut Claim,
    ) -> Result<(), ClaimError> {
        let Some(ports) = service["spec"]["ports"].as_array_mut() else {
            return Ok(());
        };
        // By (port, node port), so that one port over two protocols gets one node port.
        let mut mine: Vec<(u64, u16, String)> = Vec::new();
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        for (at, port) in ports.iter().enumerate() {
            let Some(wanted) = port["nodePort"].as_u64().filter(|wanted| *wanted != 0) else {
                continue;
            };
            let path = format!("spec.ports[{at}].nodePort");
            let shared = mine.iter().any(|(_, taken, _)| u64::from(*taken) == wanted);
            let number = if shared {
                wanted as u16
            } else {
                self.this_port(wanted, path, owned, claim)?
            };
            mine.push((port["port"].as_u64().unwrap_or_default(), number, protocol(port)));
        }
        for port in ports {
            if port["nodePort"].as_u64().is_some_and(|wanted| wanted != 0) {
                continue;
            }
            let (target, protocol) = (port["port"].as_u64().unwrap_or_default(), protocol(port));
            let sibling = mine.iter().find(|(other, number, _)| {
                *other == target && !mine.iter().any(|(_, taken, p)| taken == number && *p == protocol)
            });
            let number = match sibling {
                Some((_, number, _)) => *number,
                None => self.any_port(claim)?,
            };
            port["nodePort"] = number.into();
            mine.push((target, number, protocol));
        }
        Ok(())
    }

    fn assign_health_check_port(
        &mut self,
        service: &mut Value,
        owned: &[Item],
        claim: &mut Claim,
    ) -> Result<(), ClaimError> {
        let number = match service["spec"]["healthCheckNodePort"].as_u64() {
            None | Some(0) => self.any_port(claim)?,
            Some(wanted) => self.this_port(wanted, "spec.healthCheckNodePort".to_owned(), owned, claim)?,
        };
        service["spec"]["healthCheckNodePort"] = number.into();
        Ok(())
    }

    fn this_port(
        &mut self,
        wanted: u64,
        path: String,
        owned: &[Item],
        claim: &mut Claim,
    ) -> Result<u16, ClaimError> {
        let number = u16::try_from(wanted).ok();
        if let Some(number) = number.filter(|number| owned.contains(&Item::Port(*number))) {
            return Ok(number);
        }
        let Some(number) = number.filter(|number| self.ports.contains(number)) else {
            let message = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            );
            return Err(invalid(path, json!(wanted), &message));
        };
        if !self.take(Item::Port(number)) {
            return Err(invalid(path, json!(wanted), "provided port is already allocated"));
        }
        claim.taken.push(Item::Port(number));
        Ok(number)
    }

    fn any_port(&mut self, claim: &mut Claim) -> Result<u16, ClaimError> {
        let (first, last) = (u128::from(*self.ports.start()), u128::from(*self.ports.end()));
        let size = last - first + 1;
        let band = (size / 32).clamp(16, 128).min(size / 2);
        let start = random() % (size - band).max(1);
        let upper = (0..size - band).map(|step| first + band + (start + step) % (size - band));
        let free = |port: u128| {
            u16::try_from(port)
                .ok()
                .filter(|port| !self.taken_ports.contains(port))
        };
        let found = upper.chain(first..first + band).find_map(free);
        let number = found.ok_or_else(|| {
            ClaimError::Exhausted("failed to allocate a nodePort: range is full".to_owned())
        })?;
        self.take(Item::Port(number));
        claim.taken.push(Item::Port(number));
        Ok(number)
    }
}

fn invalid(path: impl Into<String>, value: Value, detail: &str) -> ClaimError {
    ClaimError::Invalid(vec![FieldError::invalid(path, value, detail)])
}

/// Everything a Service holds.
fn items(service: &Value) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    if has_addresses(service) {
        let addresses = strings(service, "clusterIPs");
        items.extend(
            addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .map(Item::Address),
        );
    }
    if has_node_ports(service) {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let numbers = ports.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok());
        for number in numbers.filter(|number| *number != 0).map(Item::Port) {
            if !items.contains(&number) {
                items.push(number);
            }
        }
    }
    if has_health_check_port(service) {
        let number = service["spec"]["healthCheckNodePort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        items.extend(number.filter(|number| *number != 0).map(Item::Port));
    }
    items
}

/// `clusterIP` and `clusterIPs[0]` say the same; a client may have set only one of them.
fn sync_first_address(service: &mut Value, old: Option<&Value>) {
    let first = text(service, "clusterIP").to_owned();
    let mut all = strings(service, "clusterIPs");
    let changed = old.is_none_or(|old| text(old, "clusterIP") != first);
    let all_changed = old.is_none_or(|old| strings(old, "clusterIPs") != all);
    if changed && !all_changed && old.is_some() {
        match (first.is_empty(), all.is_empty()) {
            (true, _) => all.clear(),
            (false, true) => all.push(first),
            (false, false) => all[0] = first,
        }
    } else if all.is_empty() && !first.is_empty() {
        all.push(first);
    } else if first.is_empty() && !all.is_empty() {
        service["spec"]["clusterIP"] = json!(all[0]);
    }
    if !all.is_empty() {
        service["spec"]["clusterIPs"] = json!(all);
    }
}

/// A replace that leaves allocated fields out keeps them.
fn keep_allocated(service: &mut Value, old: &Value) {
    if has_addresses(old) && has_addresses(service) {
        if text(service, "clusterIP").is_empty() && strings(service, "clusterIPs").is_empty() {
            service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
            service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field].is_null() {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if has_node_ports(old) && has_node_ports(service) {
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or_default() == 0
                && let Some(former) = before.iter().find(|former| same(former, port))
                && !former["nodePort"].is_null()
            {
                port["nodePort"] = former["nodePort"].clone();
            }
        }
    }
    if has_health_check_port(old)
        && has_health_check_port(service)
        && service["spec"]["healthCheckNodePort"]
            .as_u64()
            .unwrap_or_default()
            == 0
    {
        service["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// Fields that the new type does not have, when the client has only carried them along.
fn drop_what_the_type_lost(service: &mut Value, old: &Value) {
    let lost = |has: fn(&Value) -> bool, service: &Value| has(old) && !has(service);
    if text(service, "type") == "ExternalName" && text(old, "type") != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove_if_carried(service, old, field);
        }
    }
    if lost(has_node_ports, service) {
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if before.iter().any(|former| former["nodePort"] == port["nodePort"])
                && let Some(port) = port.as_object_mut()
            {
                port.shift_remove("nodePort");
            }
        }
        remove_if_carried(service, old, "externalTrafficPolicy");
        remove_if_carried(service, old, "allocateLoadBalancerNodePorts");
    }
    if lost(has_health_check_port, service) {
        remove_if_carried(service, old, "healthCheckNodePort");
    }
}

fn remove_if_carried(service: &mut Value, old: &Value, field: &str) {
    if service["spec"][field] == old["spec"][field]
        && let Some(spec) = service["spec"].as_object_mut()
    {
        spec.shift_remove(field);
    }
}

/// The address at `index` of a range.
fn nth(range: &IpNet, index: u128) -> Option<IpAddr> {
    match range {
        IpNet::V4(range) => {
            let base = u128::from(u32::from(range.network()));
            u32::try_from(base + index)
                .ok()
                .map(|bits| IpAddr::V4(Ipv4Addr::from(bits)))
        }
        IpNet::V6(range) => {
            let base = u128::from(range.network());
            base.checked_add(index)
                .map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
        }
    }
    .filter(|address| range.contains(address))
}

/// Addresses that can be given: not the network's own, and not the broadcast address.
fn usable_size(range: &IpNet) -> u128 {
    match range {
        IpNet::V4(range) => (1u128 << (32 - range.prefix_len())).saturating_sub(2),
        // Kubernetes uses at most 2^16 addresses of an IPv6 range.
        IpNet::V6(range) => (1u128 << (128 - u32::from(range.prefix_len())).min(16)) - 1,
    }
}

fn usable(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address)
        && nth(range, 0) != Some(address)
        && match range {
            IpNet::V4(range) => IpAddr::V4(range.broadcast()) != address,
            IpNet::V6(_) => true,
        }
}

/// How many addresses at the start are left to static requests.
fn static_band(size: u128) -> u128 {
    if size <= 16 {
        0
    } else {
        (size / 16).clamp(16, 256).min(size / 2)
    }
}

#[cfg(test)]
mod tests;
