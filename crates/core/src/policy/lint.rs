//! What in a set of policies is probably not meant.
//!
//! That a policy cuts the kubelet's probes is not looked for: they come from the pod's own node, which always reaches its
//! pods.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use super::explain::{Party, deniers, explain, parties};
use super::judge::Judge;
use super::rule::{Origin, Peer, Peers, PolicyRef, PortMatch, Ports, Rule};
use super::state::{PolicyState, Tiers};
use super::{DIRECTIONS, LabelSets};
use crate::cluster::{
    Action, Cluster, ClusterPort, IpBlock, NamedPort, NodeName, ObjectName, ObjectRef, Pod, PodSelection,
    PolicyPort, Protocol, Selector,
};
use crate::flow::Traffic;

/// Something that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The policy.
    pub object: ObjectRef,
    /// What kind of thing.
    pub kind: FindingKind,
    /// In words for the policy's owner.
    pub text: String,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A part that cannot be read, and so fails closed.
    Unreadable,
    /// The policy is about no pod there is.
    SelectsNothing,
    /// A peer that is nobody there is.
    PeerMatchesNothing,
    /// A port's name that no pod has.
    NoSuchPort,
    /// A rule that never decides anything.
    Shadowed,
    /// Pods that cannot ask for names.
    CutsDns,
}

impl FindingKind {
    /// As it is written in JSON.
    pub fn word(self) -> &'static str {
        match self {
            FindingKind::Unreadable => "unreadable",
            FindingKind::SelectsNothing => "selects-nothing",
            FindingKind::PeerMatchesNothing => "peer-matches-nothing",
            FindingKind::NoSuchPort => "no-such-port",
            FindingKind::Shadowed => "shadowed",
            FindingKind::CutsDns => "cuts-dns",
        }
    }
}

/// Looks through a cluster. Where it has no pods, nothing is said of selectors.
pub fn lint(cluster: &Cluster) -> Vec<Finding> {
    let mut problems = Vec::new();
    super::tell_faults(cluster, &mut problems);
    let unreadable = problems.into_iter().map(|problem| Finding {
        object: problem.object,
        kind: FindingKind::Unreadable,
        text: problem.why,
    });
    let mut findings: BTreeSet<Finding> = unreadable.collect();
    let sets = LabelSets::of(cluster);
    if cluster.valid_pods().any(Pod::has_own_network) {
        selectors(cluster, &sets, &mut findings);
        dns(cluster, &mut findings);
    }
    let judge = Judge::new(cluster);
    peers(&judge, &mut findings);
    shadows(&judge, &mut findings);
    findings.into_iter().collect()
}

fn selectors(cluster: &Cluster, sets: &LabelSets, findings: &mut BTreeSet<Finding>) {
    let namespaced = cluster.network_policies.iter().filter_map(|(name, policy)| {
        let pods = policy.as_ref().ok()?.pods.as_ref().ok()?;
        let subject = PodSelection {
            namespaces: Selector::namespace(&name.namespace),
            pods: pods.clone(),
        };
        Some((PolicyRef::Namespaced(name.clone()), subject))
    });
    let whole = cluster
        .cluster_network_policies
        .iter()
        .filter_map(|(name, policy)| {
            let subject = policy.as_ref().ok()?.subject.as_ref().ok()?;
            Some((PolicyRef::Cluster(name.clone()), subject.clone()))
        });
    for (policy, subject) in namespaced.chain(whole) {
        let selected = sets.select(&subject);
        if selected.is_empty() {
            findings.insert(Finding {
                object: policy.object(),
                kind: FindingKind::SelectsNothing,
                text: format!("it is about {subject}, and there is no such pod"),
            });
            continue;
        }
        for (index, protocol, name) in ingress_names(cluster, &policy) {
            let mut pods = selected.iter().filter_map(|id| sets.get(*id));
            if !pods.any(|set| set.named(protocol, &name).next().is_some()) {
                findings.insert(Finding {
                    object: policy.object(),
                    kind: FindingKind::NoSuchPort,
                    text: format!("spec.ingress[{index}]: none of its pods names a port {name:?}"),
                });
            }
        }
    }
}

/// The names of ports in a policy's ingress rules, which compiled rules no longer have.
fn ingress_names(cluster: &Cluster, policy: &PolicyRef) -> Vec<(usize, Option<Protocol>, String)> {
    let mut names = Vec::new();
    match policy {
        PolicyRef::Namespaced(name) => {
            let Some(Ok(policy)) = cluster.network_policies.get(name) else {
                return names;
            };
            for (index, rule) in policy.ingress.iter().flatten().enumerate() {
                for port in rule.ports.iter().flatten() {
                    if let Some(PolicyPort::Named(name)) = &port.port {
                        names.push((index, Some(port.protocol.unwrap_or(Protocol::Tcp)), name.clone()));
                    }
                }
            }
        }
        PolicyRef::Cluster(name) => {
            let Some(Ok(policy)) = cluster.cluster_network_policies.get(name) else {
                return names;
            };
            for (index, rule) in policy.ingress.iter().enumerate() {
                let protocols = rule
                    .matches
                    .iter()
                    .filter_map(|matches| matches.protocols.as_ref());
                for port in protocols.flatten() {
                    if let ClusterPort::Named(name) = port {
                        names.push((index, None, name.clone()));
                    }
                }
            }
        }
    }
    names
}

/// Peers and ports' names of the rules that some pod has.
fn peers(judge: &Judge, findings: &mut BTreeSet<Finding>) {
    for state in judge.states() {
        for rule in state.rules.values().flat_map(super::PodRules::all) {
            let mut found = |kind, text| {
                let object = rule.origin.policy.object();
                findings.insert(Finding { object, kind, text });
            };
            let at = place(&rule.origin);
            if let Peers::OneOf(peers) = &rule.peers {
                for peer in peers.iter().filter(|peer| is_nobody(state, peer)) {
                    let text = format!("{at}: {peer} is nobody there is");
                    found(FindingKind::PeerMatchesNothing, text);
                }
            }
            if let Ports::OneOf(ports) = &rule.ports {
                for port in ports {
                    if let PortMatch::Named(protocol, name) = port
                        && !state
                            .label_sets
                            .values()
                            .any(|set| set.named(*protocol, name).next().is_some())
                    {
                        found(
                            FindingKind::NoSuchPort,
                            format!("{at}: no pod names a port {name:?}"),
                        );
                    }
                }
            }
        }
    }
}

fn is_nobody(state: &PolicyState, peer: &Peer) -> bool {
    match peer {
        Peer::Pods(selection) => state.selections.get(selection).is_none_or(BTreeSet::is_empty),
        Peer::Nodes(selector) => state.nodes.get(selector).is_none_or(BTreeSet::is_empty),
        Peer::Block(_) | Peer::Domain(_) => false,
    }
}

fn place(origin: &Origin) -> String {
    let name = if origin.name.is_empty() {
        String::new()
    } else {
        format!(" ({})", origin.name)
    };
    format!("spec.{}[{}]{name}", origin.direction, origin.index)
}

/// Rules that never decide, whichever pod has them.
fn shadows(judge: &Judge, findings: &mut BTreeSet<Finding>) {
    // Where a rule decides somewhere it has an empty entry.
    let mut by: BTreeMap<&Origin, Option<String>> = BTreeMap::new();
    for rules in judge.states().flat_map(|state| state.rules.values()) {
        for direction in DIRECTIONS {
            let tiers = rules.of(direction);
            let all: Vec<(u8, &Rule)> = in_order(tiers);
            for (i, (tier, rule)) in all.iter().enumerate() {
                let isolated = tiers.network.as_ref().filter(|_| *tier == 2).map(|isolation| {
                    let by: Vec<_> = isolation.by.iter().map(ObjectName::to_string).collect();
                    format!("NetworkPolicy {} decides for all its pods", by.join(", "))
                });
                let earlier = all[..i].iter().find(|(its, earlier)| {
                    (earlier.action != Action::Pass || its == tier) && covers(earlier, rule)
                });
                let earlier =
                    earlier.map(|(_, earlier)| format!("{} matches all of it before", earlier.origin));
                match earlier.or(isolated) {
                    Some(why) => _ = by.entry(&rule.origin).or_insert(Some(why)),
                    None => _ = by.insert(&rule.origin, None),
                }
            }
        }
    }
    for (origin, why) in by {
        if let Some(why) = why {
            findings.insert(Finding {
                object: origin.policy.object(),
                kind: FindingKind::Shadowed,
                text: format!("{}: it never decides: {why}", place(origin)),
            });
        }
    }
}

fn in_order(tiers: &Tiers) -> Vec<(u8, &Rule)> {
    let network = tiers.network.iter().flat_map(|isolation| &isolation.rules);
    let admin = tiers.admin.iter().map(|rule| (0, rule));
    let baseline = tiers.baseline.iter().map(|rule| (2, rule));
    admin
        .chain(network.map(|rule| (1, rule)))
        .chain(baseline)
        .collect()
}

/// Whether a rule matches whatever another one matches, as far as their texts tell it.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let peers = match (&wide.peers, &narrow.peers) {
        (Peers::Anybody, _) => true,
        (Peers::OneOf(_), Peers::Anybody) => false,
        (Peers::OneOf(wide), Peers::OneOf(narrow)) => narrow
            .iter()
            .all(|narrow| wide.iter().any(|wide| covers_peer(wide, narrow))),
    };
    let ports = match (&wide.ports, &narrow.ports) {
        (Ports::Any, _) => true,
        (Ports::OneOf(_), Ports::Any) => false,
        (Ports::OneOf(wide), Ports::OneOf(narrow)) => narrow
            .iter()
            .all(|narrow| wide.iter().any(|wide| covers_port(wide, narrow))),
    };
    peers && ports
}

fn covers_peer(wide: &Peer, narrow: &Peer) -> bool {
    match (wide, narrow) {
        (Peer::Pods(wide), Peer::Pods(narrow)) => {
            wide.namespaces.covers(&narrow.namespaces) && wide.pods.covers(&narrow.pods)
        }
        (Peer::Nodes(wide), Peer::Nodes(narrow)) => wide.covers(narrow),
        (Peer::Block(wide), Peer::Block(narrow)) => covers_block(wide, narrow),
        (Peer::Domain(wide), Peer::Domain(narrow)) => wide.covers(narrow),
        _ => false,
    }
}

/// Each hole of the wide one is outside of the narrow one, or in a hole of it.
fn covers_block(wide: &IpBlock, narrow: &IpBlock) -> bool {
    let outside = |hole: ipnet::IpNet| !hole.contains(&narrow.cidr()) && !narrow.cidr().contains(&hole);
    wide.cidr().contains(&narrow.cidr())
        && wide
            .except()
            .all(|hole| outside(hole) || narrow.except().any(|other| other.contains(&hole)))
}

fn covers_port(wide: &PortMatch, narrow: &PortMatch) -> bool {
    match (wide, narrow) {
        (PortMatch::Every(wide), PortMatch::Every(narrow) | PortMatch::Numbers(narrow, _)) => wide == narrow,
        (PortMatch::Every(wide), PortMatch::Named(narrow, _)) => Some(*wide) == *narrow,
        (PortMatch::Numbers(of, wide), PortMatch::Numbers(also, narrow)) => {
            of == also && wide.contains(narrow.first()) && wide.contains(narrow.last())
        }
        (PortMatch::Named(None, wide), PortMatch::Named(_, narrow)) => wide == narrow,
        _ => wide == narrow,
    }
}

const DNS_PORT: NonZeroU16 = NonZeroU16::new(53).expect("53 is not 0");

/// Pods that reach no DNS server. Where the cluster has none of the usual labels, one is imagined at the usual place.
fn dns(cluster: &Cluster, findings: &mut BTreeSet<Finding>) {
    let is_server = |pod: &&Pod| pod.labels.get("k8s-app").is_some_and(|app| app == "kube-dns");
    let mut imagined;
    let mut cluster = cluster;
    if !cluster.valid_pods().any(|pod| is_server(&pod)) {
        imagined = cluster.clone();
        let server = usual_server();
        imagined.pods.insert(server.name.clone(), Ok(server));
        cluster = &imagined;
    }
    let judge = Judge::new(cluster);
    let servers: Vec<Party> = cluster.valid_pods().filter(is_server).map(Party::pod).collect();
    let mut cut: BTreeMap<PolicyRef, BTreeSet<String>> = BTreeMap::new();
    for (pod, from) in parties(cluster).filter(|(pod, _)| !is_server(pod)) {
        let asked = servers
            .iter()
            .flat_map(|to| explain(&judge, &from, to, Traffic::Port(Protocol::Udp, DNS_PORT)));
        let verdicts: Vec<_> = asked.map(|asked| asked.verdict).collect();
        if verdicts.iter().all(|verdict| !verdict.allowed()) {
            for policy in verdicts.iter().flat_map(deniers) {
                cut.entry(policy).or_default().insert(pod.name.to_string());
            }
        }
    }
    for (policy, pods) in cut {
        let pods: Vec<_> = pods.into_iter().collect();
        findings.insert(Finding {
            object: policy.object(),
            kind: FindingKind::CutsDns,
            text: format!(
                "{} cannot ask the cluster's DNS for names; accept udp and tcp 53 between them and \
                 {}, if names are needed",
                pods.join(", "),
                servers
                    .iter()
                    .map(|server| server.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        });
    }
}

fn usual_server() -> Pod {
    let mut pod = Pod::new(ObjectName::new("kube-system", "kube-dns"));
    pod.labels = [("k8s-app".to_owned(), "kube-dns".to_owned())].into();
    pod.node = NodeName::new("imagined").ok();
    // Of the ranges that RFC 5737 and RFC 3849 keep for such ends.
    pod.addresses = vec![[192, 0, 2, 53].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 53].into()];
    let port = |name: &str, protocol| NamedPort {
        name: name.to_owned(),
        protocol,
        port: DNS_PORT,
    };
    pod.ports = [port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)].into();
    pod
}
