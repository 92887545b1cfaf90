//! Who may reach whom, and why: in words.

use std::net::IpAddr;

use super::judge::{Decision, Judge, Outcome, Reason, Verdict};
use super::{Origin, PolicyRef};
use crate::cluster::{Cluster, Direction, Family, Pod};
use crate::flow::{Flow, Traffic};

/// An end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// What people call it.
    pub name: String,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The domain name it was reached by.
    pub domain: Option<String>,
}

impl Party {
    /// A pod.
    pub fn pod(pod: &Pod) -> Self {
        Party {
            name: pod.name.to_string(),
            addresses: pod.addresses.clone(),
            domain: None,
        }
    }

    /// An address.
    pub fn address(address: IpAddr) -> Self {
        Party {
            name: address.to_string(),
            addresses: vec![address],
            domain: None,
        }
    }

    fn of_family(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }
}

/// What becomes of a flow in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The family.
    pub family: Family,
    /// The flow.
    pub flow: Flow,
    /// What the rules say.
    pub verdict: Verdict,
    /// What would make it otherwise.
    pub change: Vec<String>,
}

/// Judges what one party sends to another, in each family that both have.
pub fn explain(judge: &Judge, from: &Party, to: &Party, traffic: Traffic) -> Vec<Explanation> {
    let families = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        let mut flow = Flow::new(from.of_family(family)?, to.of_family(family)?, traffic);
        flow.names.extend(to.domain.clone());
        let verdict = judge.judge(&flow);
        let change = change(judge, &flow, &verdict);
        Some(Explanation {
            family,
            flow,
            verdict,
            change,
        })
    });
    families.collect()
}

/// The policies that deny a flow.
pub fn deniers(verdict: &Verdict) -> Vec<PolicyRef> {
    let ends = [&verdict.egress, &verdict.ingress].into_iter().flatten();
    ends.filter(|decision| !decision.allowed)
        .flat_map(|decision| match &decision.reason {
            Reason::Rule(origin) => vec![origin.policy.clone()],
            Reason::Isolated(by) => by.iter().cloned().map(PolicyRef::Namespaced).collect(),
            Reason::OwnAddress | Reason::OwnNode | Reason::Open => Vec::new(),
        })
        .collect()
}

/// For a flow that is denied, what would let it through; for one that is allowed, what lets it through.
fn change(judge: &Judge, flow: &Flow, verdict: &Verdict) -> Vec<String> {
    let ends = [
        (Direction::Egress, &verdict.egress),
        (Direction::Ingress, &verdict.ingress),
    ];
    let allowed = verdict.allowed();
    let deciding = ends.into_iter().filter_map(|(direction, decision)| {
        let decision = decision.as_ref()?;
        (decision.allowed == allowed).then_some((direction, decision))
    });
    deciding
        .flat_map(|(direction, decision)| match &decision.reason {
            Reason::Rule(origin) => vec![without(judge, flow, origin)],
            Reason::Isolated(_) => near(direction, flow, decision),
            Reason::OwnAddress | Reason::OwnNode | Reason::Open => Vec::new(),
        })
        .collect()
}

fn without(judge: &Judge, flow: &Flow, origin: &Origin) -> String {
    let Some(decision) = judge.without(origin, flow) else {
        return String::new();
    };
    let fate = if decision.allowed { "allowed" } else { "denied" };
    format!(
        "without {origin} its {} were {fate}: {}",
        origin.direction, decision.reason
    )
}

/// The rules that come closest to accepting a flow that an isolated pod does not take or send.
fn near(direction: Direction, flow: &Flow, decision: &Decision) -> Vec<String> {
    let Flow {
        from, to, traffic, ..
    } = flow;
    let other = match direction {
        Direction::Ingress => from,
        Direction::Egress => to,
    };
    let mut hints: Vec<String> = decision
        .steps
        .iter()
        .filter(|step| matches!(step.rule.origin.policy, PolicyRef::Namespaced(_)))
        .filter_map(|step| match step.outcome {
            Outcome::OtherPort => {
                let origin = &step.rule.origin;
                Some(format!(
                    "{origin} accepts {other}, but not {traffic}: add the port to it"
                ))
            }
            _ => None,
        })
        .collect();
    if hints.is_empty() {
        hints.push(format!(
            "a NetworkPolicy that selects the pod would have to accept {direction} of {traffic} with {other}"
        ));
    }
    hints
}

/// The pods that policies can be judged for, by name.
pub fn parties(cluster: &Cluster) -> impl Iterator<Item = (&Pod, Party)> {
    let pods = cluster.valid_pods().filter(|pod| !pod.ended);
    pods.map(|pod| (pod, Party::pod(pod)))
}
