//! From policies, pods, namespaces and nodes to the rules for a node's pods.
//!
//! One compiled form serves to enforce, to explain offline and to name what decided.

mod clusterwide;
pub mod explain;
pub mod judge;
mod label_set;
pub mod lint;
pub mod matrix;
mod network;
mod rule;
mod state;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use label_set::{LabelSet, LabelSetId, LabelSetIdError, LabelSets};
pub use rule::{Origin, Peer, Peers, PolicyRef, PortMatch, Ports, Rule};
pub use state::{Isolation, LocalPod, PodRules, PolicyState, Tiers};
pub use text::RuleError;

use crate::cluster::{
    Cluster, Direction, Existing, NetworkPolicy, Node, NodeName, ObjectName, Parsed, PodSelection, PortRange,
};
use crate::state::Problem;
use clusterwide::Placed;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The policy part of [`crate::compute`].
pub fn compute(cluster: &Cluster, me: &NodeName, problems: &mut Vec<Problem>) -> PolicyState {
    tell_faults(cluster, problems);
    let mut state = PolicyState::default();
    if cluster.network_policies.is_empty() && cluster.cluster_network_policies.is_empty() {
        return state;
    }
    let sets = LabelSets::of(cluster);
    let policies = Policies::of(cluster);
    for pod in cluster.valid_pods() {
        // Its runtime may have been told before we that it is bound to this node.
        let is_here = pod.node.as_ref() == Some(me) || cluster.local.has_wired(pod);
        if !pod.has_own_network() || !is_here {
            continue;
        }
        let id = LabelSets::id_of(cluster, pod);
        let Some(set) = sets.get(id) else { continue };
        let rules = state.rules.entry(id).or_insert_with(|| policies.rules(set));
        if !rules.is_open() {
            let addresses = cluster.addresses_of(pod).collect();
            let local = LocalPod {
                label_set: id,
                addresses,
            };
            state.pods.insert(pod.name.clone(), local);
        }
    }
    state.rules.retain(|_, rules| !rules.is_open());
    state.strangers = strangers(cluster, &policies);
    if !state.is_open() {
        state.own_node = cluster.node(me).map(own_addresses).unwrap_or_default();
        fill(&mut state, cluster, &sets);
    }
    state
}

/// The addresses of this node's pods of which the API says nothing, where a policy may be about them.
fn strangers(cluster: &Cluster, policies: &Policies<'_>) -> BTreeSet<IpAddr> {
    let pods = cluster.local.pods.iter();
    let concerned = pods.filter(|(name, _)| policies.may_select(&name.namespace));
    let strangers = concerned.flat_map(|(name, wired)| {
        let object = cluster.pods.get(name);
        wired.iter().filter(move |wired| wired.is_stranger(object))
    });
    strangers
        .flat_map(|wired| wired.addresses.iter().copied())
        .collect()
}

/// What a node calls its pods from, and is reached at by them: its addresses, and the first ones of its ranges, which it
/// has itself.
fn own_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let ranges = node.pod_ranges.iter().map(|range| range.network());
    node.all_addresses.iter().copied().chain(ranges).collect()
}

/// Looks up what the rules name.
fn fill(state: &mut PolicyState, cluster: &Cluster, sets: &LabelSets) {
    let (mut selections, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for rule in state.rules.values().flat_map(PodRules::all) {
        if let Peers::OneOf(peers) = &rule.peers {
            for peer in peers {
                match peer {
                    Peer::Pods(selection) => _ = selections.insert(selection),
                    Peer::Nodes(selector) => _ = nodes.insert(selector),
                    Peer::Block(_) | Peer::Domain(_) => {}
                }
            }
        }
    }
    // What a name means at the other end depends on who that is, so a rule for anybody may need everybody's.
    let everybody = PodSelection::default();
    if state
        .rules
        .values()
        .any(|rules| rules.egress.all().any(Rule::has_names))
    {
        selections.insert(&everybody);
    }
    for selection in selections {
        let chosen = sets.select(selection);
        for id in &chosen {
            if let Some(set) = sets.get(*id) {
                state.label_sets.entry(*id).or_insert_with(|| set.clone());
            }
        }
        state.selections.insert(selection.clone(), chosen);
    }
    for selector in nodes {
        let chosen = cluster
            .valid_nodes()
            .filter(|node| selector.matches(&node.labels));
        let addresses = chosen
            .flat_map(|node| node.all_addresses.iter().copied())
            .collect();
        state.nodes.insert(selector.clone(), addresses);
    }
    state.keep_existing = keeping(cluster);
    let in_force: BTreeSet<PolicyRef> = state.rules.values().flat_map(PodRules::policies).collect();
    state.keep_existing.retain(|policy| in_force.contains(policy));
}

fn keeping(cluster: &Cluster) -> BTreeSet<PolicyRef> {
    let keeps = |existing| existing == &Ok(Existing::Keep);
    let namespaced = cluster.network_policies.iter().filter_map(|(name, policy)| {
        let policy = policy.as_ref().ok().filter(|policy| keeps(&policy.existing));
        policy.map(|_| PolicyRef::Namespaced(name.clone()))
    });
    let whole = cluster
        .cluster_network_policies
        .iter()
        .filter_map(|(name, policy)| {
            let policy = policy.as_ref().ok().filter(|policy| keeps(&policy.existing));
            policy.map(|_| PolicyRef::Cluster(name.clone()))
        });
    namespaced.chain(whole).collect()
}

/// The policies of a cluster, as they are looked through.
struct Policies<'a> {
    by_namespace: BTreeMap<&'a str, Vec<(&'a ObjectName, &'a Parsed<NetworkPolicy>)>>,
    whole_cluster: Vec<Placed<'a>>,
}

impl<'a> Policies<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, policy) in &cluster.network_policies {
            by_namespace
                .entry(name.namespace.as_str())
                .or_default()
                .push((name, policy));
        }
        // One that cannot be read at all says neither whom nor what to deny.
        let mut whole_cluster: Vec<_> = cluster
            .cluster_network_policies
            .iter()
            .filter_map(|(name, policy)| Some(Placed::new(name, policy.as_ref().ok()?)))
            .collect();
        whole_cluster.sort_by(|a, b| a.order().cmp(&b.order()));
        Policies {
            by_namespace,
            whole_cluster,
        }
    }

    /// Whether some policy could be about a pod of a namespace.
    fn may_select(&self, namespace: &str) -> bool {
        !self.whole_cluster.is_empty() || self.by_namespace.contains_key(namespace)
    }

    /// The rules for pods of a label set.
    fn rules(&self, set: &LabelSet) -> PodRules {
        let mut rules = PodRules::default();
        for direction in DIRECTIONS {
            let tiers = rules.of_mut(direction);
            for policy in self.whole_cluster.iter().filter(|policy| policy.selects(set)) {
                policy.add(tiers, direction, set);
            }
            let namespace = set.namespace.get(crate::cluster::NAMESPACE_NAME);
            let candidates = namespace.and_then(|name| self.by_namespace.get(name.as_str()));
            for (name, policy) in candidates.into_iter().flatten() {
                if network::selects(name, policy, set) && network::isolates(policy, direction) {
                    let isolation = tiers.network.get_or_insert_default();
                    network::add(isolation, name, policy, direction, set);
                }
            }
        }
        rules
    }
}

/// The rule as it stands for pods of one label set: in an ingress rule the names of ports are the pods' own numbers.
/// `None` when it can match nothing.
fn resolve(mut rule: Rule, subject: &LabelSet) -> Option<Rule> {
    if let (Ports::OneOf(ports), Direction::Ingress) = (&mut rule.ports, rule.origin.direction) {
        let written = std::mem::take(ports);
        for port in written {
            match port {
                PortMatch::Named(protocol, name) => {
                    let numbers = subject.named(protocol, &name);
                    ports.extend(
                        numbers.map(|(protocol, port)| PortMatch::Numbers(protocol, PortRange::one(port))),
                    );
                }
                port => _ = ports.insert(port),
            }
        }
    }
    let nobody = matches!(&rule.peers, Peers::OneOf(peers) if peers.is_empty());
    let nothing = matches!(&rule.ports, Ports::OneOf(ports) if ports.is_empty());
    (!nobody && !nothing).then_some(rule)
}

fn tell_faults(cluster: &Cluster, problems: &mut Vec<Problem>) {
    for (name, policy) in &cluster.network_policies {
        let faults = policy.as_ref().map(network::faults).unwrap_or_default();
        problems.extend(faults.into_iter().map(|why| Problem {
            object: PolicyRef::Namespaced(name.clone()).object(),
            why,
        }));
    }
    for (name, policy) in &cluster.cluster_network_policies {
        let faults = policy.as_ref().map(clusterwide::faults).unwrap_or_default();
        problems.extend(faults.into_iter().map(|why| Problem {
            object: PolicyRef::Cluster(name.clone()).object(),
            why,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Pod, Selector, Wired};

    /// Kubelet may hear of a binding, and have the pod's network made, before we do.
    #[test]
    fn a_pod_that_was_wired_here_is_policed_before_its_binding_is_seen() {
        let (name, me) = (ObjectName::new("shop", "db"), NodeName::new("node1").unwrap());
        let deny = NetworkPolicy {
            pods: Ok(Selector::everything()),
            types: None,
            ingress: None,
            egress: None,
            existing: Ok(Existing::Cut),
        };
        let mut cluster = Cluster::default();
        cluster
            .network_policies
            .insert(ObjectName::new("shop", "deny"), Ok(deny));
        let mut pod = Pod::new(name.clone());
        pod.uids = vec!["1".into()];
        cluster.pods.insert(name.clone(), Ok(pod));
        assert!(compute(&cluster, &me, &mut Vec::new()).is_open());
        let address: IpAddr = "10.244.0.2".parse().unwrap();
        for (uid, policed, strange) in [("1", true, false), ("2", false, true)] {
            let wired = Wired {
                uid: uid.into(),
                addresses: [address].into(),
                ..Wired::default()
            };
            cluster.local.pods = [(name.clone(), vec![wired])].into();
            let state = compute(&cluster, &me, &mut Vec::new());
            let found = state.pods.get(&name);
            assert_eq!(
                found.is_some_and(|pod| pod.addresses.contains(&address)),
                policed,
                "{uid}"
            );
            assert_eq!(state.strangers.contains(&address), strange, "{uid}");
        }
    }
}
