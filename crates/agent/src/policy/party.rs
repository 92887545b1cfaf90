//! Who is meant on the command line.

use std::net::IpAddr;
use std::num::NonZeroU16;

use miette::miette;
use podnet_core::cluster::{DomainPattern, ObjectName, Pod, Protocol};
use podnet_core::flow::Traffic;
use podnet_core::policy::explain::Party;

use super::load::Loaded;

/// A pod by its name, an address, or a name with its address.
pub(super) fn party(loaded: &Loaded, namespace: &str, text: &str) -> miette::Result<Party> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(Party::address(address));
    }
    if let Some((domain, address)) = text.split_once('=') {
        return named(domain, address);
    }
    let name = pod_name(namespace, text);
    match find(loaded, &name) {
        Some(pod) if pod.addresses.is_empty() => Err(miette!(
            help = "give the manifest of the pod's node with -f, or its address in place of its name",
            "pod {name} has no address to judge"
        )),
        Some(pod) => Ok(Party::pod(pod)),
        None => Err(miette!(
            help = format!("the manifests have: {}", known(loaded)),
            "no pod {name}, and {text:?} is no address"
        )),
    }
}

/// A receiver, and what is sent to it.
pub(super) fn destination(
    loaded: &Loaded,
    namespace: &str,
    text: &str,
) -> miette::Result<(Party, Vec<Traffic>)> {
    let (who, port) = split(text);
    let to = party(loaded, namespace, who)?;
    let name = pod_name(namespace, who);
    let Some(port) = port else {
        let declared = loaded.ports.get(&name).cloned().unwrap_or_default();
        return Ok((to, declared.into_iter().chain([Traffic::Icmp]).collect()));
    };
    // A number, or a name that the pod gives to one.
    let parsed = traffic(port).or_else(|why| {
        let mut ports = find(loaded, &name).into_iter().flat_map(|pod| &pod.ports);
        ports
            .find(|named| named.name == port)
            .map(|named| Traffic::Port(named.protocol, named.port))
            .ok_or(why)
    });
    Ok((to, vec![parsed.map_err(|why| miette!("{why}"))?]))
}

/// `PORT[/PROTOCOL]`.
pub(super) fn traffic(text: &str) -> Result<Traffic, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: NonZeroU16 = number.parse().map_err(|_| {
        format!("{text:?} is no port such as 80, 53/udp or 9/sctp, and no name the pod gives to one")
    })?;
    let protocol: Protocol = protocol
        .to_ascii_uppercase()
        .parse()
        .map_err(|error| format!("{error}"))?;
    Ok(Traffic::Port(protocol, number))
}

/// The end, and the port if there is one. An IPv6 address without brackets has none.
fn split(text: &str) -> (&str, Option<&str>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((who, port)) if !port.contains(']') => (who, Some(port)),
        _ => (text, None),
    }
}

fn named(domain: &str, address: &str) -> miette::Result<Party> {
    let address: IpAddr = address
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .map_err(|_| miette!("{address:?} is no address that {domain} could stand for"))?;
    let pattern: DomainPattern = domain.parse().map_err(|error| miette!("{error}"))?;
    let domain = pattern.to_string();
    Ok(Party {
        name: format!("{domain} ({address})"),
        addresses: vec![address],
        domain: Some(domain),
    })
}

fn pod_name(namespace: &str, text: &str) -> ObjectName {
    match text.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(namespace, text),
    }
}

fn find<'a>(loaded: &'a Loaded, name: &ObjectName) -> Option<&'a Pod> {
    loaded.cluster.pods.get(name)?.as_ref().ok()
}

fn known(loaded: &Loaded) -> String {
    let names: Vec<_> = loaded.cluster.pods.keys().map(ObjectName::to_string).collect();
    match names.len() {
        0 => "no pod at all".to_owned(),
        1..=10 => names.join(", "),
        more => format!("{} and {} more", names[..10].join(", "), more - 10),
    }
}
