//! Whether an assignment of load balancers' addresses is right: looks at every address of every pool.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cluster::{Cluster, ExternalPolicy, LoadBalancerPoolSpec};
use crate::ipam::Standing;
use crate::load_balancer::{Assignment, Claim};

/// What is wrong with it, if anything. The pools have to be small.
pub fn judge(cluster: &Cluster, claims: &[Claim], assignment: &Assignment) -> Result<(), String> {
    let mut holders: BTreeMap<IpAddr, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        for address in &assignment.services[&claim.service].addresses {
            if !may(cluster, assignment, claim, *address) {
                return Err(format!("{} may not have {address}", claim.service));
            }
            holders.entry(*address).or_default().push(claim);
        }
    }
    for (address, holders) in &holders {
        for (first, a) in holders.iter().enumerate() {
            for b in &holders[first + 1..] {
                if !share(a, b) {
                    return Err(format!("{address} is both {}'s and {}'s", a.service, b.service));
                }
            }
        }
    }
    let fits = |claim: &Claim, address: IpAddr| {
        let mut others = holders.get(&address).into_iter().flatten();
        others.all(|other| other.service == claim.service || share(claim, other))
    };
    for claim in claims {
        kept(cluster, assignment, claim, fits)?;
        for v4 in [true, false] {
            satisfied(cluster, assignment, claim, v4, fits)?;
        }
    }
    Ok(())
}

fn share(a: &Claim, b: &Claim) -> bool {
    let keys = a.sharing_key.is_some() && a.sharing_key == b.sharing_key;
    let ports = a.ports.iter().all(|port| !b.ports.contains(port));
    let local = a.policy == ExternalPolicy::Local || b.policy == ExternalPolicy::Local;
    let pods =
        a.service.namespace == b.service.namespace && a.selector == b.selector && !a.selector.is_empty();
    keys && ports && (!local || pods)
}

fn spec_of<'a>(
    cluster: &'a Cluster,
    assignment: &Assignment,
    address: IpAddr,
) -> Option<(&'a str, &'a LoadBalancerPoolSpec)> {
    for (name, pool) in &cluster.load_balancer_pools {
        let Ok(spec) = &pool.as_ref().ok()?.spec else {
            continue;
        };
        if matches!(assignment.pools[name].standing, Standing::Wrong(_)) {
            continue;
        }
        if spec
            .ranges
            .iter()
            .any(|range| range.first <= address && address <= range.last)
        {
            let ends = match address {
                IpAddr::V4(address) => [0, 255].contains(&address.octets()[3]),
                IpAddr::V6(_) => false,
            };
            return (!(spec.avoid_first_and_last && ends)).then_some((name, spec));
        }
    }
    None
}

/// Whether a pool in force has the address for the service.
fn may(cluster: &Cluster, assignment: &Assignment, claim: &Claim, address: IpAddr) -> bool {
    let Some((name, spec)) = spec_of(cluster, assignment, address) else {
        return false;
    };
    let namespace = &cluster.namespaces[&claim.service.namespace];
    let chosen = spec
        .services
        .as_ref()
        .is_none_or(|selector| selector.matches(&claim.labels))
        && spec
            .namespaces
            .as_ref()
            .is_none_or(|selector| selector.matches(namespace.labels()));
    let named = match &claim.wish {
        Ok(wish) => wish.pool.as_deref().is_none_or(|pool| pool == name),
        Err(_) => true,
    };
    let family = claim
        .families
        .iter()
        .any(|family| (*family == crate::cluster::Family::V4) == address.is_ipv4());
    chosen && named && family
}

/// What a service has and asks for nothing instead of, it keeps, unless somebody else has it now.
fn kept(
    cluster: &Cluster,
    assignment: &Assignment,
    claim: &Claim,
    fits: impl Fn(&Claim, IpAddr) -> bool,
) -> Result<(), String> {
    let has = &assignment.services[&claim.service].addresses;
    for address in &claim.held {
        let first = claim.held.iter().find(|held| {
            held.is_ipv4() == address.is_ipv4()
                && may(cluster, assignment, claim, **held)
                && fits(claim, **held)
        });
        let wished = claim.wish.as_ref().is_ok_and(|wish| {
            wish.addresses
                .iter()
                .any(|wished| wished.is_ipv4() == address.is_ipv4())
        });
        if first == Some(address) && !wished && !has.contains(address) {
            return Err(format!("{} had {address} and lost it", claim.service));
        }
    }
    Ok(())
}

/// Who has no address of a family could have none, and is told so.
fn satisfied(
    cluster: &Cluster,
    assignment: &Assignment,
    claim: &Claim,
    v4: bool,
    fits: impl Fn(&Claim, IpAddr) -> bool,
) -> Result<(), String> {
    let assigned = &assignment.services[&claim.service];
    let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
    let has = assigned.addresses.iter().find(of_family);
    let Ok(wish) = &claim.wish else {
        return match assigned.lacks.is_empty() {
            true => Err(format!(
                "{} is not told that its wish is unreadable",
                claim.service
            )),
            false => Ok(()),
        };
    };
    let wanted = claim
        .families
        .iter()
        .any(|family| (*family == crate::cluster::Family::V4) == v4);
    let wished = wish.addresses.iter().find(of_family);
    if let Some(wished) = wished {
        let open = spec_of(cluster, assignment, *wished).is_some_and(|(_, spec)| !spec.disabled);
        let granted = has == Some(wished);
        if !granted && open && may(cluster, assignment, claim, *wished) && fits(claim, *wished) {
            return Err(format!(
                "{} could have {wished}, which it asks for",
                claim.service
            ));
        }
        if !granted && assigned.lacks.is_empty() {
            return Err(format!("{} is not told why it has not {wished}", claim.service));
        }
        return Ok(());
    }
    if has.is_some() || !wanted {
        return Ok(());
    }
    for address in every_address(cluster).filter(|address| address.is_ipv4() == v4) {
        let open = spec_of(cluster, assignment, address)
            .is_some_and(|(_, spec)| !spec.disabled && (!spec.on_request || wish.pool.is_some()));
        if open && may(cluster, assignment, claim, address) && fits(claim, address) {
            return Err(format!("{} could have {address}", claim.service));
        }
    }
    let told = !assigned.lacks.is_empty();
    let content = !claim.all_families && !assigned.addresses.is_empty();
    match told || content {
        true => Ok(()),
        false => Err(format!("{} is not told that it lacks an address", claim.service)),
    }
}

fn every_address(cluster: &Cluster) -> impl Iterator<Item = IpAddr> {
    let pools = cluster
        .load_balancer_pools
        .values()
        .filter_map(|pool| pool.as_ref().ok());
    let ranges = pools.flat_map(|pool| pool.spec.iter().flat_map(|spec| spec.ranges.clone()));
    ranges.flat_map(|range| -> Vec<IpAddr> {
        match (range.first, range.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits()..=last.to_bits())
                .map(|bits| Ipv4Addr::from_bits(bits).into())
                .collect(),
            (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits()..=last.to_bits())
                .map(|bits| Ipv6Addr::from_bits(bits).into())
                .collect(),
            _ => Vec::new(),
        }
    })
}
