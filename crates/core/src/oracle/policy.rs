//! Whether policies allow a flow, worked out the slow way: sentence by sentence from the texts of NetworkPolicy
//! (networking.k8s.io/v1) and ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2). It shares no code with
//! [`crate::policy`].

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::cluster::{
    Action, Cluster, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, Direction, DomainPattern,
    IpBlock, LabelTest, Labels, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, Node,
    ObjectName, Parsed, Pod, PolicyPort, Protocol, Selector, Tier,
};
use crate::flow::{Flow, Traffic};

/// What decided at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// This end is no pod that policies know.
    NoPod,
    /// The rule of that number in a policy, of this direction: namespace (empty for a ClusterNetworkPolicy), name, index.
    Rule(String, String, usize),
    /// The pod is isolated and nothing accepts the flow.
    Isolation,
    /// It is the pod's own address.
    Itself,
    /// It is the pod's own node.
    OwnNode,
    /// The default: everything is allowed.
    Default,
}

/// What becomes of a flow at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It may pass.
    pub allowed: bool,
    /// What decided.
    pub by: By,
}

/// What becomes of a flow at the sender and at the receiver: it passes when both allow it.
pub fn verdict(cluster: &Cluster, flow: &Flow) -> (End, End) {
    let sender = end(cluster, flow, flow.from, flow.to, Direction::Egress);
    let receiver = end(cluster, flow, flow.to, flow.from, Direction::Ingress);
    (sender, receiver)
}

fn end(cluster: &Cluster, flow: &Flow, mine: IpAddr, other: IpAddr, direction: Direction) -> End {
    let Some(pod) = pods_at(cluster, mine).into_iter().next() else {
        return yes(By::NoPod);
    };
    if mine == other && !flow.through_service {
        return yes(By::Itself);
    }
    let own_node = node_of(cluster, pod).is_some_and(|node| has_address(node, other));
    if own_node && direction == Direction::Ingress {
        return yes(By::OwnNode);
    }
    // ClusterNetworkPolicySpec.tier: Admin first, then the NetworkPolicies, Baseline last.
    if let Some(end) = cluster_tier(cluster, flow, pod, other, direction, Tier::Admin) {
        return end;
    }
    if isolating(cluster, pod, direction).next().is_some() {
        if mine == other {
            return yes(By::Itself);
        }
        if own_node {
            return yes(By::OwnNode);
        }
        // NetworkPolicySpec.ingress and .egress: what any rule of any of them allows is allowed.
        for (name, policy) in isolating(cluster, pod, direction) {
            let Ok(policy) = policy else { continue };
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in rules.as_deref().unwrap_or(&[]).iter().enumerate() {
                if rule_allows(cluster, flow, name, rule, other) {
                    return yes(By::Rule(name.namespace.clone(), name.name.clone(), index));
                }
            }
        }
        return no(By::Isolation);
    }
    cluster_tier(cluster, flow, pod, other, direction, Tier::Baseline).unwrap_or(yes(By::Default))
}

fn yes(by: By) -> End {
    End { allowed: true, by }
}

fn no(by: By) -> End {
    End { allowed: false, by }
}

/// The pods that have an address. Those on the host's network and those that have ended are none to policies.
fn pods_at(cluster: &Cluster, address: IpAddr) -> Vec<&Pod> {
    let mut found = Vec::new();
    for pod in cluster.pods.values().flatten() {
        if !pod.host_network && !pod.ended && pod.addresses.contains(&address) {
            found.push(pod);
        }
    }
    found
}

/// A node has the addresses that its object lists, and the network addresses of its ranges.
fn has_address(node: &Node, address: IpAddr) -> bool {
    node.all_addresses.contains(&address) || node.pod_ranges.iter().any(|range| range.network() == address)
}

fn node_of<'a>(cluster: &'a Cluster, pod: &Pod) -> Option<&'a Node> {
    cluster.nodes.get(pod.node.as_ref()?)?.as_ref().ok()
}

fn selected(selector: &Selector, labels: &Labels) -> bool {
    for requirement in selector.requirements() {
        let value = labels.get(requirement.key());
        let met = match requirement.test() {
            LabelTest::In(values) => values.iter().any(|one| Some(one) == value),
            LabelTest::NotIn(values) => values.iter().all(|one| Some(one) != value),
            LabelTest::Exists => value.is_some(),
            LabelTest::Missing => value.is_none(),
        };
        if !met {
            return false;
        }
    }
    true
}

fn namespace_selected(cluster: &Cluster, selector: &Selector, namespace: &str) -> bool {
    match cluster.namespaces.get(namespace) {
        Some(object) => selected(selector, object.labels()),
        // The API server sees to it that each has this label.
        None => selected(
            selector,
            &[("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into(),
        ),
    }
}

// NetworkPolicy

type Named<'a> = (&'a ObjectName, &'a Parsed<NetworkPolicy>);

/// The policies that isolate a pod. What is unreadable of a policy's scope isolates.
fn isolating<'a>(
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = Named<'a>> {
    cluster.network_policies.iter().filter(move |(name, policy)| {
        if name.namespace != pod.name.namespace {
            return false;
        }
        let Ok(policy) = policy else { return true };
        if let Ok(selector) = &policy.pods
            && !selected(selector, &pod.labels)
        {
            return false;
        }
        match &policy.types {
            Some(Err(_)) => true,
            Some(Ok(types)) => types.contains(&direction),
            // NetworkPolicySpec.policyTypes: when missing, ingress always, egress if the section is there.
            None => direction == Direction::Ingress || policy.egress.is_some(),
        }
    })
}

fn rule_allows(
    cluster: &Cluster,
    flow: &Flow,
    policy: &ObjectName,
    rule: &NetworkPolicyRule,
    other: IpAddr,
) -> bool {
    // NetworkPolicyIngressRule.from, NetworkPolicyEgressRule.to: empty or missing is everybody.
    let mut peer_matches = rule.peers.is_empty();
    for peer in rule.peers.iter().flatten() {
        peer_matches |= network_peer(cluster, policy, peer, other);
    }
    // .ports: empty or missing is no restriction by port.
    let mut port_matches = rule.ports.is_empty();
    for port in rule.ports.iter().flatten() {
        port_matches |= network_port(cluster, flow, port);
    }
    peer_matches && port_matches
}

fn network_peer(cluster: &Cluster, policy: &ObjectName, peer: &NetworkPolicyPeer, other: IpAddr) -> bool {
    match peer {
        NetworkPolicyPeer::Block(block) => in_block(block, other),
        NetworkPolicyPeer::Pods { namespaces, pods } => pods_at(cluster, other).into_iter().any(|pod| {
            let namespace = &pod.name.namespace;
            let namespace_matches = match namespaces {
                Some(selector) => namespace_selected(cluster, selector, namespace),
                None => *namespace == policy.namespace,
            };
            let pod_matches = pods
                .as_ref()
                .is_none_or(|selector| selected(selector, &pod.labels));
            namespace_matches && pod_matches
        }),
    }
}

fn in_block(block: &IpBlock, address: IpAddr) -> bool {
    let mut inside = block.cidr().contains(&address);
    for hole in block.except() {
        inside &= !hole.contains(&address);
    }
    inside
}

fn network_port(cluster: &Cluster, flow: &Flow, port: &NetworkPolicyPort) -> bool {
    let Traffic::Port(protocol, number) = flow.traffic else {
        return false;
    };
    // NetworkPolicyPort.protocol: TCP by default.
    if protocol != port.protocol.unwrap_or(Protocol::Tcp) {
        return false;
    }
    match &port.port {
        None => true,
        Some(PolicyPort::Numbers(range)) => range.first() <= number && number <= range.last(),
        Some(PolicyPort::Named(name)) => names_port(cluster, flow.to, name, protocol, number),
    }
}

/// Whether the pod that receives gives a port that name.
fn names_port(cluster: &Cluster, to: IpAddr, name: &str, protocol: Protocol, number: NonZeroU16) -> bool {
    pods_at(cluster, to).into_iter().any(|pod| {
        pod.ports
            .iter()
            .any(|port| port.name == name && port.protocol == protocol && port.port == number)
    })
}

// ClusterNetworkPolicy

/// The decision of a tier, if it makes one.
fn cluster_tier(
    cluster: &Cluster,
    flow: &Flow,
    pod: &Pod,
    other: IpAddr,
    direction: Direction,
    tier: Tier,
) -> Option<End> {
    let mut policies: Vec<(Option<u16>, &str, &ClusterNetworkPolicy)> = Vec::new();
    for (name, policy) in &cluster.cluster_network_policies {
        let Ok(policy) = policy else { continue };
        match (&policy.tier, &policy.priority) {
            (Ok(its), Ok(priority)) if *its == tier => policies.push((Some(*priority), name, policy)),
            (Ok(_), Ok(_)) => {}
            // It is not known where it belongs: before everything.
            _ if tier == Tier::Admin => policies.push((None, name, policy)),
            _ => {}
        }
    }
    policies.sort_by(|(a, x, _), (b, y, _)| (a, x).cmp(&(b, y)));
    for (_, name, policy) in policies {
        if let Ok(subject) = &policy.subject
            && !(namespace_selected(cluster, &subject.namespaces, &pod.name.namespace)
                && selected(&subject.pods, &pod.labels))
        {
            continue;
        }
        let whole = policy.tier.is_ok()
            && policy.priority.is_ok()
            && policy.subject.is_ok()
            && policy.unknown.is_empty();
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (index, rule) in rules.iter().enumerate() {
            let by = By::Rule(String::new(), name.to_owned(), index);
            match cluster_rule(cluster, flow, rule, whole, other) {
                None => {}
                Some(Action::Accept) => return Some(yes(by)),
                Some(Action::Deny) => return Some(no(by)),
                // ClusterNetworkPolicyRuleAction: the rest of the tier is skipped, the next one goes on.
                Some(Action::Pass) => return None,
            }
        }
    }
    None
}

/// What a rule does with the flow; `None` when it does not match.
fn cluster_rule(
    cluster: &Cluster,
    flow: &Flow,
    rule: &ClusterRule,
    whole: bool,
    other: IpAddr,
) -> Option<Action> {
    let Ok(matches) = &rule.matches else {
        // ClusterNetworkPolicyIngressPeer: failing closed is to match nothing for Accept, and for Deny and Pass to deny
        // all.
        return match rule.action {
            Ok(Action::Accept) => None,
            _ => Some(Action::Deny),
        };
    };
    let peer_matches = matches
        .peers
        .iter()
        .any(|peer| cluster_peer(cluster, flow, peer, other));
    let port_matches = match &matches.protocols {
        None => true,
        Some(protocols) => protocols.iter().any(|port| cluster_port(cluster, flow, port)),
    };
    if !peer_matches || !port_matches {
        return None;
    }
    match (&rule.action, whole) {
        (Ok(action), true) => Some(*action),
        (Ok(Action::Accept), false) => None,
        _ => Some(Action::Deny),
    }
}

fn cluster_peer(cluster: &Cluster, flow: &Flow, peer: &ClusterPeer, other: IpAddr) -> bool {
    match peer {
        ClusterPeer::Namespaces(selector) => pods_at(cluster, other)
            .into_iter()
            .any(|pod| namespace_selected(cluster, selector, &pod.name.namespace)),
        ClusterPeer::Pods(selection) => pods_at(cluster, other).into_iter().any(|pod| {
            namespace_selected(cluster, &selection.namespaces, &pod.name.namespace)
                && selected(&selection.pods, &pod.labels)
        }),
        // ClusterNetworkPolicyEgressPeer.nodes: by the addresses in their status.
        ClusterPeer::Nodes(selector) => cluster
            .nodes
            .values()
            .flatten()
            .any(|node| selected(selector, &node.labels) && node.all_addresses.contains(&other)),
        ClusterPeer::Networks(networks) => networks.iter().any(|network| network.contains(&other)),
        ClusterPeer::DomainNames(patterns) => flow
            .names
            .iter()
            .any(|name| patterns.iter().any(|pattern| domain(pattern, name))),
    }
}

/// DomainName: a leading `*` is one or more whole labels.
fn domain(pattern: &DomainPattern, name: &str) -> bool {
    let labels = |text: &str| -> Vec<String> {
        let text = text.to_lowercase();
        text.trim_end_matches('.').split('.').map(str::to_owned).collect()
    };
    let (mut wanted, have) = (labels(&pattern.to_string()), labels(name));
    if wanted[0] != "*" {
        return wanted == have;
    }
    wanted.remove(0);
    have.len() > wanted.len() && have[have.len() - wanted.len()..] == wanted[..]
}

fn cluster_port(cluster: &Cluster, flow: &Flow, port: &ClusterPort) -> bool {
    let Traffic::Port(protocol, number) = flow.traffic else {
        return false;
    };
    match port {
        ClusterPort::Numbers(wanted, range) => {
            *wanted == protocol && range.first() <= number && number <= range.last()
        }
        ClusterPort::Named(name) => names_port(cluster, flow.to, name, protocol, number),
    }
}
