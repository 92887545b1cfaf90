//! Where cluster IPs come from: the ranges of the ServiceCIDRs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

/// The ServiceCIDR that `--service-cidr` makes.
pub const DEFAULT: &str = "kubernetes";

/// A range of a ServiceCIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    /// The ServiceCIDR's name.
    cidr: String,
    net: IpNet,
    /// Ready and not being deleted: addresses are given from it.
    open: bool,
}

/// The ranges of all ServiceCIDRs, in the order in which addresses are looked for: the default one's first, then in the
/// order in which the others were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range>);

/// As `ipFamilies` names it.
pub(crate) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A random number; uuid is the crate's source of randomness.
pub(super) fn random() -> u128 {
    uuid::Uuid::new_v4().as_u128()
}

/// The first address of each range: the `kubernetes` Service.
pub fn first_addresses(ranges: &[IpNet]) -> Vec<IpAddr> {
    ranges.iter().filter_map(|range| nth(range, 1)).collect()
}

impl Ranges {
    /// Of these ServiceCIDRs.
    pub(super) fn of<'a>(cidrs: impl Iterator<Item = &'a Value>) -> Ranges {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut cidrs: Vec<&Value> = cidrs.collect();
        cidrs.sort_by_key(|cidr| {
            let name = text(&cidr["metadata"]["name"]);
            (
                name != DEFAULT,
                text(&cidr["metadata"]["creationTimestamp"]),
                name,
            )
        });
        let ranges = cidrs.into_iter().flat_map(|cidr| {
            let open = is_open(cidr);
            let nets = cidr["spec"]["cidrs"].as_array().into_iter().flatten();
            nets.filter_map(move |net| {
                Some(Range {
                    cidr: text(&cidr["metadata"]["name"]),
                    net: net.as_str()?.parse().ok()?,
                    open,
                })
            })
        });
        Ranges(ranges.collect())
    }

    fn open<'a>(&'a self, family: &'a str) -> impl Iterator<Item = &'a IpNet> {
        let open = self.0.iter().filter(|range| range.open).map(|range| &range.net);
        open.filter(move |net| family_of(net.addr()) == family)
    }

    fn listed(&self, family: &str) -> String {
        let open: Vec<String> = self.open(family).map(ToString::to_string).collect();
        open.join(", ")
    }

    /// A free address: of each range from the upper band first, which leaves the lower one to those who ask by address.
    pub(super) fn any(&self, family: &str, taken: impl Fn(&IpAddr) -> bool) -> Result<IpAddr, String> {
        let found = self.open(family).find_map(|net| {
            let size = usable_size(net);
            let band = static_band(size);
            let free = |index: u128| nth(net, index).filter(|address| !taken(address));
            let start = random() % (size - band).max(1);
            let upper = (0..size - band).map(|step| band + 1 + (start + step) % (size - band));
            { upper }.find_map(free).or_else(|| (1..=band).find_map(free))
        });
        found.ok_or_else(|| match self.listed(family) {
            none if none.is_empty() => format!(
                "failed to allocate a serviceIP: no ServiceCIDR with an {family} range is ready; make one \
                 (kubectl get servicecidrs shows those there are)"
            ),
            full => format!(
                "failed to allocate a serviceIP: range is full: all addresses of {full} are in use; make a ServiceCIDR \
                 with a further range"
            ),
        })
    }

    /// Whether an address that was asked for can be had as far as its range goes; else why not.
    pub(super) fn admits(&self, address: IpAddr, family: &str) -> Result<(), String> {
        if family_of(address) == family && self.open(family).any(|net| usable(net, address)) {
            return Ok(());
        }
        let mut closed = self.0.iter().filter(|range| !range.open);
        if let Some(Range { cidr, net, .. }) = closed.find(|range| usable(&range.net, address)) {
            return Err(format!(
                "its range {net} is of the ServiceCIDR {cidr}, which is being deleted or not ready; choose an address in \
                 {}",
                self.listed(family)
            ));
        }
        Err(match self.listed(family) {
            none if none.is_empty() => format!("no ServiceCIDR with an {family} range is ready; make one"),
            valid => format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {valid}: choose an \
                 address in it, or make a ServiceCIDR with a range that has it"
            ),
        })
    }

    /// Whether an address is the ServiceCIDR's alone: it is in it and in no other that is open.
    pub(super) fn only_in(&self, cidr: &str, address: IpAddr) -> bool {
        let of_it = |range: &&Range| range.cidr == cidr;
        let holds = |range: &Range| range.net.contains(&address);
        let others = self.0.iter().filter(|range| !of_it(range) && range.open);
        self.0.iter().filter(of_it).any(holds) && !others.into_iter().any(holds)
    }
}

fn is_open(cidr: &Value) -> bool {
    let conditions = cidr["status"]["conditions"].as_array().into_iter().flatten();
    let ready = { conditions }.any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && cidr["metadata"]["deletionTimestamp"].is_null()
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
