//! Connections that exist when policies change: those that are denied now are cut.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use podnet_core::cluster::{Direction, ObjectName, Protocol};
use podnet_core::flow::{Flow, Traffic};
use podnet_core::policy::judge::Reason;
use podnet_core::policy::{PolicyRef, PolicyState};
use podnet_linux::netfilter::{Netfilter, NetfilterError};

use crate::conntrack::{self, Connection};
use crate::own;

/// Which policies the connections that exist have been judged by.
#[derive(Debug, Default)]
pub(crate) struct Existing {
    judged_by: Option<Arc<PolicyState>>,
}

impl Existing {
    /// Cuts what `policy`, which is in force, denies and what it replaces did not. Where that is not known, all
    /// connections of the pods it is about are judged.
    pub(crate) fn cut(
        &mut self,
        socket: &mut Netfilter,
        policy: &Arc<PolicyState>,
    ) -> Result<usize, NetfilterError> {
        let before = self.judged_by.as_deref();
        let may_deny = !policy.is_open() && before.is_none_or(|before| may_deny_more(before, policy));
        let cut = if may_deny { cut(socket, policy)? } else { 0 };
        self.judged_by = Some(Arc::clone(policy));
        Ok(cut)
    }
}

/// Whether connections of the node's pods may be denied now that were not.
fn may_deny_more(old: &PolicyState, new: &PolicyState) -> bool {
    if std::ptr::eq(old, new) {
        return false;
    }
    let has_new_rules = new.pods.iter().any(|(name, pod)| {
        let before = old.pods.get(name);
        before.is_none_or(|before| {
            before.addresses != pod.addresses
                || old.rules.get(&before.label_set) != new.rules.get(&pod.label_set)
        })
    });
    has_new_rules
        || !new.strangers.is_subset(&old.strangers)
        || !old.own_node.is_subset(&new.own_node)
        || loses(&old.selections, &new.selections)
        || loses(&old.nodes, &new.nodes)
        || old.label_sets.iter().any(|(id, set)| {
            let now = new.label_sets.get(id);
            now.is_none_or(|now| !set.members.is_subset(&now.members))
        })
}

/// Whether some set has an element less. One that is gone whole is in no rule any more.
fn loses<K: Ord, V: Ord>(
    old: &std::collections::BTreeMap<K, BTreeSet<V>>,
    new: &std::collections::BTreeMap<K, BTreeSet<V>>,
) -> bool {
    let mut both = old.iter().filter_map(|(key, old)| Some((old, new.get(key)?)));
    both.any(|(old, new)| !old.is_subset(new))
}

fn cut(socket: &mut Netfilter, policy: &PolicyState) -> Result<usize, NetfilterError> {
    let pods = policy.pods.iter();
    let pods = pods.flat_map(|(name, pod)| pod.addresses.iter().map(move |address| (*address, name)));
    let mut judge = Judge {
        policy,
        pods: pods.collect(),
        own: own::addresses(policy.own_node.iter().copied()),
        known: HashMap::new(),
    };
    conntrack::cut(socket, |connection| judge.condemns(connection))
}

type Question = (IpAddr, IpAddr, Traffic, bool);

struct Judge<'a> {
    policy: &'a PolicyState,
    pods: HashMap<IpAddr, &'a ObjectName>,
    own: BTreeSet<IpAddr>,
    /// Many connections differ in nothing that policies ask for.
    known: HashMap<Question, bool>,
}

impl Judge<'_> {
    fn condemns(&mut self, connection: &Connection) -> bool {
        let question = question(connection);
        let (from, to, ..) = question;
        let concerned = [from, to]
            .iter()
            .any(|end| self.pods.contains_key(end) || self.policy.strangers.contains(end));
        if !concerned {
            return false;
        }
        if let Some(known) = self.known.get(&question) {
            return *known;
        }
        let condemned = self.denies(question, Direction::Egress) || self.denies(question, Direction::Ingress);
        self.known.insert(question, condemned);
        condemned
    }

    fn denies(&self, (from, to, traffic, through_service): Question, direction: Direction) -> bool {
        let (mine, other) = match direction {
            Direction::Ingress => (to, from),
            Direction::Egress => (from, to),
        };
        let is_own = self.own.contains(&other) || other.is_loopback();
        if self.policy.strangers.contains(&mine) {
            return !is_own;
        }
        let Some(pod) = self.pods.get(&mine) else {
            return false;
        };
        if is_own && direction == Direction::Ingress {
            return false;
        }
        let flow = Flow {
            through_service,
            ..Flow::new(from, to, traffic)
        };
        match self.policy.verdict(pod, direction, &flow) {
            (true, _) => false,
            // From its own node no NetworkPolicy isolates a pod, whichever of the node's addresses it is.
            (false, Reason::Isolated(_)) if is_own => false,
            (false, reason) => !self.keeps(&reason),
        }
    }

    /// Whether all policies that deny leave alone what exists already.
    fn keeps(&self, reason: &Reason) -> bool {
        let keeps = |policy: &PolicyRef| self.policy.keep_existing.contains(policy);
        match reason {
            Reason::Rule(origin) => keeps(&origin.policy),
            Reason::Isolated(by) => by.iter().all(|name| keeps(&PolicyRef::Namespaced(name.clone()))),
            Reason::OwnAddress | Reason::OwnNode | Reason::Open => true,
        }
    }
}

/// What policies ask of a connection: about the chosen endpoint, and the client before its address was translated.
fn question(connection: &Connection) -> Question {
    let port = connection
        .answered_from
        .and_then(|socket| NonZeroU16::new(socket.port()));
    let traffic = match (Protocol::from_number(connection.protocol), port) {
        (Some(protocol), Some(port)) => Traffic::Port(protocol, port),
        _ => Traffic::Icmp,
    };
    let through_service = connection.destination != connection.server;
    (connection.client, connection.server, traffic, through_service)
}
