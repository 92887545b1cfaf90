use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use podnet_core::cluster::{
    Direction, Existing, IpBlock, LabelTest, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicyRule, ObjectName, Part, PolicyPort, PortRange, Requirement, Selector, Unread,
};

use super::{object_name, port, protocol};

const EXISTING: &str = "podnet.io/existing-connections";

/// A NetworkPolicy. It always has a place in the cluster: what of it cannot be read fails closed on its own.
pub fn network_policy(object: &api::NetworkPolicy) -> (ObjectName, NetworkPolicy) {
    let spec = object.spec.clone().unwrap_or_default();
    let policy = NetworkPolicy {
        pods: selector("spec.podSelector", &spec.pod_selector.unwrap_or_default()),
        types: types(&spec.policy_types.unwrap_or_default()),
        ingress: rules(
            "spec.ingress",
            spec.ingress
                .into_iter()
                .flatten()
                .map(|rule| ("from", rule.from, rule.ports)),
        ),
        egress: rules(
            "spec.egress",
            spec.egress
                .into_iter()
                .flatten()
                .map(|rule| ("to", rule.to, rule.ports)),
        ),
        existing: existing(object.metadata.annotations.as_ref()),
    };
    (object_name(&object.metadata), policy)
}

/// What the annotation says of connections that exist already.
pub(super) fn existing(annotations: Option<&BTreeMap<String, String>>) -> Part<Existing> {
    let text = annotations.and_then(|annotations| annotations.get(EXISTING));
    match text.map(String::as_str) {
        None | Some("cut") => Ok(Existing::Cut),
        Some("keep") => Ok(Existing::Keep),
        Some(other) => unread(
            format!("metadata.annotations[{EXISTING}]"),
            format!("{other:?} is neither cut nor keep"),
        ),
    }
}

/// Kubernetes does not tell an empty list from a missing one here.
fn types(texts: &[String]) -> Option<Part<BTreeSet<Direction>>> {
    if texts.is_empty() {
        return None;
    }
    let types = texts.iter().map(|text| match text.as_str() {
        "Ingress" => Ok(Direction::Ingress),
        "Egress" => Ok(Direction::Egress),
        other => unread(
            "spec.policyTypes",
            format!("{other:?} is neither Ingress nor Egress"),
        ),
    });
    Some(types.collect())
}

type Rule = (
    &'static str,
    Option<Vec<api::NetworkPolicyPeer>>,
    Option<Vec<api::NetworkPolicyPort>>,
);

/// A list without rules is a missing one, as it is to Kubernetes: the API's own encoding leaves it out.
fn rules(path: &str, rules: impl Iterator<Item = Rule>) -> Option<Vec<NetworkPolicyRule>> {
    let rules: Vec<_> = rules
        .enumerate()
        .map(|(i, (field, peers, ports))| {
            let path = format!("{path}[{i}]");
            let peers = peers.into_iter().flatten().enumerate();
            let ports = ports.into_iter().flatten().enumerate();
            NetworkPolicyRule {
                peers: peers
                    .map(|(j, object)| peer(&format!("{path}.{field}[{j}]"), &object))
                    .collect(),
                ports: ports
                    .map(|(j, object)| policy_port(&format!("{path}.ports[{j}]"), &object))
                    .collect(),
            }
        })
        .collect();
    (!rules.is_empty()).then_some(rules)
}

fn peer(path: &str, object: &api::NetworkPolicyPeer) -> Part<NetworkPolicyPeer> {
    let (namespaces, pods) = (&object.namespace_selector, &object.pod_selector);
    match &object.ip_block {
        Some(block) if namespaces.is_none() && pods.is_none() => ip_block(&format!("{path}.ipBlock"), block),
        Some(_) => unread(path, "ipBlock goes with no selector; make two peers of it"),
        None if namespaces.is_none() && pods.is_none() => unread(
            path,
            "none of podSelector, namespaceSelector and ipBlock, or a kind of peer that is not known",
        ),
        None => {
            let read = |field: &str, object: &Option<LabelSelector>| {
                let selector = object
                    .as_ref()
                    .map(|object| selector(&format!("{path}.{field}"), object));
                selector.transpose()
            };
            Ok(NetworkPolicyPeer::Pods {
                namespaces: read("namespaceSelector", namespaces)?,
                pods: read("podSelector", pods)?,
            })
        }
    }
}

fn ip_block(path: &str, object: &api::IPBlock) -> Part<NetworkPolicyPeer> {
    let cidr = network(&format!("{path}.cidr"), &object.cidr)?;
    let except = object.except.iter().flatten().enumerate();
    let except = except.map(|(i, text)| network(&format!("{path}.except[{i}]"), text));
    let except = except.collect::<Result<Vec<_>, _>>()?;
    let block = IpBlock::new(cidr, except).or_else(|error| unread(path, error))?;
    Ok(NetworkPolicyPeer::Block(block))
}

pub(super) fn network(path: &str, text: &str) -> Part<IpNet> {
    text.parse()
        .or_else(|_| unread(path, format!("{text:?} is no range such as 10.0.0.0/8")))
}

fn policy_port(path: &str, object: &api::NetworkPolicyPort) -> Part<NetworkPolicyPort> {
    let protocol = object.protocol.as_deref().map(|text| protocol(Some(text)));
    let protocol = protocol
        .transpose()
        .or_else(|why| unread(format!("{path}.protocol"), why))?;
    let port = match (&object.port, object.end_port) {
        (None, None) => None,
        (None, Some(_)) => return unread(format!("{path}.endPort"), "it needs a port to begin with"),
        (Some(IntOrString::String(_)), Some(_)) => {
            return unread(format!("{path}.endPort"), "it does not go with a port's name");
        }
        (Some(IntOrString::String(name)), None) => Some(PolicyPort::Named(port_name(path, name)?)),
        (Some(IntOrString::Int(first)), last) => {
            let range = port_range(path, "endPort", (*first).into(), last.unwrap_or(*first).into())?;
            Some(PolicyPort::Numbers(range))
        }
    };
    Ok(NetworkPolicyPort { protocol, port })
}

pub(super) fn port_range(path: &str, last_field: &str, first: i64, last: i64) -> Part<PortRange> {
    let number = |number: i64| {
        i32::try_from(number)
            .map_err(|_| format!("{number} is no port"))
            .and_then(port)
    };
    let numbers = number(first).and_then(|first| Ok((first, number(last)?)));
    let (from, to) = numbers.or_else(|why| unread(path, why))?;
    match PortRange::new(from, to) {
        Some(range) => Ok(range),
        None => unread(
            format!("{path}.{last_field}"),
            format!("{last} is below the first port, {first}"),
        ),
    }
}

/// A service name (RFC 6335, 5.1), which is what Kubernetes lets a port's name be.
pub(super) fn port_name(path: &str, name: &str) -> Part<String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let letter = name.chars().any(|c| c.is_ascii_lowercase());
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if letter && !hyphens && name.len() <= 15 && name.chars().all(inner) {
        return Ok(name.to_owned());
    }
    unread(
        path,
        format!("{name:?} is no port name: use lower-case letters, digits and '-', 15 characters at most"),
    )
}

/// A label selector.
pub(super) fn selector(path: &str, object: &LabelSelector) -> Part<Selector> {
    let mut requirements = Vec::new();
    for (key, value) in object.match_labels.iter().flatten() {
        requirements.push(Requirement::new(key, LabelTest::In([value.clone()].into())));
    }
    for expression in object.match_expressions.iter().flatten() {
        let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
        let test = match expression.operator.as_str() {
            "In" => LabelTest::In(values),
            "NotIn" => LabelTest::NotIn(values),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                return unread(
                    path,
                    format!("the operator {} takes no values", expression.operator),
                );
            }
            "Exists" => LabelTest::Exists,
            "DoesNotExist" => LabelTest::Missing,
            other => {
                let why = format!("operator {other:?} is none of In, NotIn, Exists and DoesNotExist");
                return unread(path, why);
            }
        };
        requirements.push(Requirement::new(&expression.key, test));
    }
    let requirements = requirements.into_iter().collect::<Result<Vec<_>, _>>();
    requirements
        .map(Selector::new)
        .or_else(|error| unread(path, error))
}

pub(super) fn unread<T>(path: impl std::fmt::Display, why: impl std::fmt::Display) -> Part<T> {
    Err(Unread(format!("{path}: {why}")))
}
