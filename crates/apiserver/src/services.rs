//! Cluster IPs and node ports of Services, given synchronously as kube-apiserver does.
//!
//! Invariant: an address or a node port is given to one Service only. All writes of Services go through one lock
//! around [`Allocations`]; what a write took is given back when the write fails, what it freed is freed only after
//! it succeeded. The state is rebuilt from the store at start.

mod fields;
mod ranges;

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::kinds::FieldError;
use fields::{
    NONE, allocates_node_ports, drop_what_the_type_lost, has_health_check_port, has_node_ports, is_headless,
    items, keep_allocated, strings, sync_first_address, text,
};
pub(crate) use ranges::family_of;
pub use ranges::{DEFAULT, first_addresses};
use ranges::{Ranges, random};

/// Which addresses and node ports are taken, and where addresses come from.
#[derive(Debug)]
pub struct Allocations {
    /// The cluster's families, the default one first.
    families: Vec<&'static str>,
    ranges: Ranges,
    ports: RangeInclusive<u16>,
    taken_addresses: HashSet<IpAddr>,
    /// Addresses that are no Service's: somebody has made an IPAddress for them.
    reserved: HashSet<IpAddr>,
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

impl Claim {
    /// The addresses that the Service has only since this write.
    pub fn taken_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        addresses(&self.taken)
    }

    /// The addresses that it has no longer.
    pub fn freed_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        addresses(&self.freed)
    }
}

fn addresses(items: &[Item]) -> impl Iterator<Item = IpAddr> + '_ {
    items.iter().filter_map(|item| match item {
        Item::Address(address) => Some(*address),
        Item::Port(_) => None,
    })
}

/// The cluster IPs that a Service has.
pub fn addresses_of(service: &Value) -> Vec<IpAddr> {
    addresses(&items(service)).collect()
}

/// Why a Service cannot have what it asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimError {
    /// Wrong fields (422).
    Invalid(Vec<FieldError>),
    /// Nothing left (500).
    Exhausted(String),
}

impl Allocations {
    /// Nothing is taken, and no address can be had before [`Allocations::set_ranges`]. The families are those of
    /// `--service-cidr`, whose first one is the default.
    pub fn new(service_cidrs: &[IpNet], ports: RangeInclusive<u16>) -> Allocations {
        Allocations {
            families: service_cidrs
                .iter()
                .map(|range| family_of(range.addr()))
                .collect(),
            ranges: Ranges::default(),
            ports,
            taken_addresses: HashSet::new(),
            reserved: HashSet::new(),
            taken_ports: HashSet::new(),
        }
    }

    /// Takes what a stored Service has.
    pub fn restore(&mut self, service: &Value) {
        for item in items(service) {
            self.take(item);
        }
    }

    /// These are all ServiceCIDRs: addresses are given from those that are ready and not being deleted.
    pub fn set_ranges<'a>(&mut self, cidrs: impl Iterator<Item = &'a Value>) {
        self.ranges = Ranges::of(cidrs);
    }

    /// These addresses are somebody else's, and no Service gets them.
    pub fn set_reserved(&mut self, addresses: HashSet<IpAddr>) {
        self.reserved = addresses;
    }

    /// Whether a Service has this address.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.taken_addresses.contains(&address)
    }

    /// Whether every address that a Service has is among these.
    pub fn are_all_in(&self, addresses: &HashSet<IpAddr>) -> bool {
        self.taken_addresses.is_subset(addresses)
    }

    /// Whether a ServiceCIDR cannot go yet: a Service has an address that no other has, from which addresses are given. Other
    /// people's IPAddresses hold up nothing, as in Kubernetes.
    pub fn needs(&self, cidr: &str) -> bool {
        let mut used = self.taken_addresses.iter();
        used.any(|address| self.ranges.only_in(cidr, *address))
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
        let configured = &self.families;
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
        if let Err(why) = self.ranges.admits(address, family) {
            return refuse(why);
        }
        if self.reserved.contains(&address) {
            return refuse(format!(
                "it is kept by the IPAddress {address}, which is no Service's; choose another one, or delete that object"
            ));
        }
        if self.taken_addresses.contains(&address) {
            return refuse("provided IP is already allocated".to_owned());
        }
        Ok(address)
    }

    fn any_address(&self, family: &str) -> Result<IpAddr, ClaimError> {
        let taken =
            |address: &IpAddr| self.taken_addresses.contains(address) || self.reserved.contains(address);
        self.ranges.any(family, taken).map_err(ClaimError::Exhausted)
    }

    fn assign_node_ports(
        &mut self,
        service: &mut Value,
        owned: &[Item],
        claim: &mut Claim,
    ) -> Result<(), ClaimError> {
        let allocates = allocates_node_ports(service);
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
        for port in ports.iter_mut().filter(|_| allocates) {
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
            ClaimError::Exhausted(format!(
                "failed to allocate a nodePort: range is full: all ports of {first}-{last} are in use; give the API server \
                 a larger --service-node-port-range"
            ))
        })?;
        self.take(Item::Port(number));
        claim.taken.push(Item::Port(number));
        Ok(number)
    }
}

fn invalid(path: impl Into<String>, value: Value, detail: &str) -> ClaimError {
    ClaimError::Invalid(vec![FieldError::invalid(path, value, detail)])
}

#[cfg(test)]
mod tests;
