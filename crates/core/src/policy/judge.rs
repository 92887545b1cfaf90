//! What the compiled rules say of a flow, and why.
//!
//! It uses nothing but the compiled state, as a data plane does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::rule::in_block;
use super::{Isolation, Origin, Peer, Peers, PolicyState, PortMatch, Ports, Rule};
use crate::cluster::{Action, Cluster, Direction, NodeName, ObjectName, Pod};
use crate::flow::{Flow, Traffic};

/// What becomes of a flow at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// It may pass.
    pub allowed: bool,
    /// What decided.
    pub reason: Reason,
    /// The rules that were looked at, in order; the last one decided if the reason is a rule.
    pub steps: Vec<Step>,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule.
    Rule(Origin),
    /// These NetworkPolicies isolate the pod, and none of them accepts the flow.
    Isolated(BTreeSet<ObjectName>),
    /// A pod and itself.
    OwnAddress,
    /// A pod and its own node.
    OwnNode,
    /// No policy is about it.
    Open,
}

/// A rule that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The rule.
    pub rule: Rule,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is about others.
    OtherPeer,
    /// It is about this peer, but not about this protocol and port.
    OtherPort,
    /// It matched, and left the decision to the next tier.
    Passed,
    /// It matched and decided.
    Decided,
}

impl PolicyState {
    /// What the rules of a pod of this node say of a flow to it or from it.
    pub fn judge(&self, pod: &ObjectName, direction: Direction, flow: &Flow) -> Decision {
        self.judge_without(pod, direction, flow, None)
    }

    /// The same if one rule were not there.
    pub fn judge_without(
        &self,
        pod: &ObjectName,
        direction: Direction,
        flow: &Flow,
        without: Option<&Origin>,
    ) -> Decision {
        let mut look = Look {
            state: self,
            direction,
            flow,
            without,
            steps: Some(Vec::new()),
        };
        let (allowed, reason) = look.decide(pod);
        Decision {
            allowed,
            reason,
            steps: look.steps.unwrap_or_default(),
        }
    }

    /// Whether a flow may pass, and what decided, without a word on what was looked at.
    pub fn verdict(&self, pod: &ObjectName, direction: Direction, flow: &Flow) -> (bool, Reason) {
        let mut look = Look {
            state: self,
            direction,
            flow,
            without: None,
            steps: None,
        };
        look.decide(pod)
    }
}

struct Look<'a> {
    state: &'a PolicyState,
    direction: Direction,
    flow: &'a Flow,
    without: Option<&'a Origin>,
    /// Where they are wanted.
    steps: Option<Vec<Step>>,
}

impl Look<'_> {
    fn decide(&mut self, pod: &ObjectName) -> (bool, Reason) {
        let Some(rules) = self.state.rules_of(pod) else {
            return (true, Reason::Open);
        };
        let tiers = rules.of(self.direction);
        if self.is_itself() && !self.flow.through_service {
            return (true, Reason::OwnAddress);
        }
        // Probes, and whatever else the node wants of its pods.
        if self.direction == Direction::Ingress && self.is_own_node() {
            return (true, Reason::OwnNode);
        }
        self.first(&tiers.admin)
            .or_else(|| self.network(tiers.network.as_ref()?))
            .or_else(|| self.first(&tiers.baseline))
            .unwrap_or((true, Reason::Open))
    }

    fn network(&mut self, isolation: &Isolation) -> Option<(bool, Reason)> {
        if self.is_itself() {
            return Some((true, Reason::OwnAddress));
        }
        if self.is_own_node() {
            return Some((true, Reason::OwnNode));
        }
        let denied = || Some((false, Reason::Isolated(isolation.by.clone())));
        self.first(&isolation.rules).or_else(denied)
    }

    /// The first rule that matches; `None` when there is none, or when it passes.
    fn first(&mut self, rules: &[Rule]) -> Option<(bool, Reason)> {
        for rule in rules.iter().filter(|rule| self.without != Some(&rule.origin)) {
            let outcome = self.outcome(rule);
            if let Some(steps) = &mut self.steps {
                steps.push(Step {
                    rule: rule.clone(),
                    outcome,
                });
            }
            match outcome {
                Outcome::OtherPeer | Outcome::OtherPort => {}
                Outcome::Passed => return None,
                Outcome::Decided => {
                    let reason = Reason::Rule(rule.origin.clone());
                    return Some((rule.action == Action::Accept, reason));
                }
            }
        }
        None
    }

    fn outcome(&self, rule: &Rule) -> Outcome {
        let peer = match &rule.peers {
            Peers::Anybody => true,
            Peers::OneOf(peers) => peers.iter().any(|peer| self.is_peer(peer)),
        };
        let port = match &rule.ports {
            Ports::Any => true,
            Ports::OneOf(ports) => ports.iter().any(|port| self.is_port(port)),
        };
        match (peer, port, rule.action) {
            (false, _, _) => Outcome::OtherPeer,
            (true, false, _) => Outcome::OtherPort,
            (true, true, Action::Pass) => Outcome::Passed,
            (true, true, Action::Accept | Action::Deny) => Outcome::Decided,
        }
    }

    fn is_peer(&self, peer: &Peer) -> bool {
        let other = self.other();
        match peer {
            Peer::Pods(selection) => {
                let sets = self.state.selections.get(selection).into_iter().flatten();
                sets.filter_map(|id| self.state.label_sets.get(id))
                    .any(|set| set.members.contains(&other))
            }
            Peer::Nodes(selector) => self
                .state
                .nodes
                .get(selector)
                .is_some_and(|nodes| nodes.contains(&other)),
            Peer::Block(block) => in_block(block, other),
            Peer::Domain(pattern) => self.flow.names.iter().any(|name| pattern.matches(name)),
        }
    }

    fn is_port(&self, wanted: &PortMatch) -> bool {
        let Traffic::Port(protocol, port) = self.flow.traffic else {
            return false;
        };
        match wanted {
            PortMatch::Every(of) => *of == protocol,
            PortMatch::Numbers(of, range) => *of == protocol && range.contains(port),
            PortMatch::Named(of, name) => {
                let destination = self
                    .state
                    .label_sets
                    .values()
                    .filter(|set| set.members.contains(&self.flow.to));
                of.is_none_or(|of| of == protocol)
                    && destination
                        .flat_map(|set| set.named(*of, name))
                        .any(|number| number == (protocol, port))
            }
        }
    }

    fn other(&self) -> IpAddr {
        match self.direction {
            Direction::Ingress => self.flow.from,
            Direction::Egress => self.flow.to,
        }
    }

    fn is_itself(&self) -> bool {
        self.flow.from == self.flow.to
    }

    fn is_own_node(&self) -> bool {
        self.state.own_node.contains(&self.other())
    }
}

/// The compiled rules of every node of a cluster.
#[derive(Debug)]
pub struct Judge {
    states: BTreeMap<NodeName, PolicyState>,
    pods: BTreeMap<IpAddr, (ObjectName, NodeName)>,
}

/// What becomes of a flow: at the sender, then at the receiver. An end that is no pod with a network of its own has no
/// decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// By the sender's rules.
    pub egress: Option<Decision>,
    /// By the receiver's rules.
    pub ingress: Option<Decision>,
}

impl Verdict {
    /// Both ends allow it.
    pub fn allowed(&self) -> bool {
        let ends = [&self.egress, &self.ingress];
        ends.into_iter().flatten().all(|decision| decision.allowed)
    }
}

impl Judge {
    /// Compiles every node's rules.
    pub fn new(cluster: &Cluster) -> Self {
        let pods = || cluster.valid_pods().filter(|pod| pod.has_own_network());
        let nodes: BTreeSet<&NodeName> = pods().filter_map(|pod| pod.node.as_ref()).collect();
        let states = nodes.into_iter().map(|node| {
            let state = super::compute(cluster, node, &mut Vec::new());
            (node.clone(), state)
        });
        let place = |pod: &Pod| Some((pod.name.clone(), pod.node.clone()?));
        let mut by_address = BTreeMap::new();
        for pod in pods() {
            if let Some(place) = place(pod) {
                for address in &pod.addresses {
                    by_address.entry(*address).or_insert_with(|| place.clone());
                }
            }
        }
        Judge {
            states: states.collect(),
            pods: by_address,
        }
    }

    /// Judges a flow at both ends.
    pub fn judge(&self, flow: &Flow) -> Verdict {
        Verdict {
            egress: self.at(flow.from, Direction::Egress, flow),
            ingress: self.at(flow.to, Direction::Ingress, flow),
        }
    }

    /// The state of each node that has pods.
    pub fn states(&self) -> impl Iterator<Item = &PolicyState> {
        self.states.values()
    }

    /// What would be decided at one end if a rule were not there.
    pub fn without(&self, rule: &Origin, flow: &Flow) -> Option<Decision> {
        let (pod, node) = self.pods.get(&end(rule.direction, flow))?;
        let state = self.states.get(node)?;
        Some(state.judge_without(pod, rule.direction, flow, Some(rule)))
    }

    fn at(&self, address: IpAddr, direction: Direction, flow: &Flow) -> Option<Decision> {
        let (pod, node) = self.pods.get(&address)?;
        Some(self.states.get(node)?.judge(pod, direction, flow))
    }
}

/// The address of the end that decides about a direction.
fn end(direction: Direction, flow: &Flow) -> IpAddr {
    match direction {
        Direction::Ingress => flow.to,
        Direction::Egress => flow.from,
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Rule(origin) => write!(f, "{origin}"),
            Reason::Isolated(by) => {
                let by: Vec<_> = by.iter().map(ObjectName::to_string).collect();
                write!(f, "no rule of NetworkPolicy {} accepts it", by.join(", "))
            }
            Reason::OwnAddress => f.write_str("a pod always reaches itself"),
            Reason::OwnNode => f.write_str("a pod and its own node always reach each other"),
            Reason::Open => f.write_str("no policy is about it"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::OtherPeer => "another peer",
            Outcome::OtherPort => "another port",
            Outcome::Passed => "matches, and leaves it to the next tier",
            Outcome::Decided => "matches, and decides",
        })
    }
}
