use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use kube::api::{ApiResource, DynamicObject};
use podnet_core::cluster::{
    Action, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, DomainPattern, Part,
    PodSelection, PortRange, Protocol, Selector, Tier,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::network_policy::{existing, network, port_name, port_range, selector, unread};

/// The API's own limits: so many rules in a direction, and peers, protocols, networks and names in a list.
const MOST: usize = 25;
const LONGEST_NAME: usize = 100;

/// A ClusterNetworkPolicy (policy.networking.k8s.io) as the API server sends it. Its spec is read part by part, so that
/// what is not known closes its own rule and no other.
#[derive(Debug, Clone, Deserialize)]
pub struct ClusterNetworkPolicyObject {
    /// Name, annotations.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Map<String, Value>,
}

/// A ClusterNetworkPolicy and its name.
pub fn cluster_network_policy(object: &ClusterNetworkPolicyObject) -> (String, ClusterNetworkPolicy) {
    let spec = &object.spec;
    let known = ["tier", "priority", "subject", "ingress", "egress"];
    let unknown = spec.keys().filter(|field| !known.contains(&field.as_str()));
    let policy = ClusterNetworkPolicy {
        tier: tier(spec.get("tier")),
        priority: priority(spec.get("priority")),
        subject: subject(spec.get("subject")),
        ingress: rules::<IngressPeer>(spec.get("ingress"), "ingress", "from"),
        egress: rules::<EgressPeer>(spec.get("egress"), "egress", "to"),
        unknown: unknown
            .filter_map(|field| unread::<()>(format!("spec.{field}"), "this field is not known").err())
            .collect(),
        existing: existing(object.metadata.annotations.as_ref()),
    };
    (object.metadata.name.clone().unwrap_or_default(), policy)
}

/// What the API calls the kind.
pub fn cluster_network_policy_kind() -> ApiResource {
    ApiResource {
        group: "policy.networking.k8s.io".into(),
        version: "v1alpha2".into(),
        api_version: "policy.networking.k8s.io/v1alpha2".into(),
        kind: "ClusterNetworkPolicy".into(),
        plural: "clusternetworkpolicies".into(),
    }
}

/// One as it is watched.
pub fn cluster_network_policy_object(object: &DynamicObject) -> (String, ClusterNetworkPolicy) {
    cluster_network_policy(&ClusterNetworkPolicyObject {
        metadata: object.metadata.clone(),
        spec: object.data["spec"].as_object().cloned().unwrap_or_default(),
    })
}

fn tier(value: Option<&Value>) -> Part<Tier> {
    match value.and_then(Value::as_str) {
        Some("Admin") => Ok(Tier::Admin),
        Some("Baseline") => Ok(Tier::Baseline),
        _ => unread(
            "spec.tier",
            format!("{} is neither Admin nor Baseline", shown(value)),
        ),
    }
}

fn priority(value: Option<&Value>) -> Part<u16> {
    let number = value
        .and_then(Value::as_u64)
        .and_then(|number| u16::try_from(number).ok());
    match number {
        Some(number @ 0..=1000) => Ok(number),
        _ => unread(
            "spec.priority",
            format!("{} is no number from 0 to 1000", shown(value)),
        ),
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

/// A label selector that knows what it does not know.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Labels {
    #[serde(default)]
    match_labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<LabelSelectorRequirement>,
}

impl Labels {
    fn read(self, path: &str) -> Part<Selector> {
        let object = LabelSelector {
            match_labels: Some(self.match_labels),
            match_expressions: Some(self.match_expressions),
        };
        selector(path, &object)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespacedPod {
    namespace_selector: Option<Labels>,
    pod_selector: Labels,
}

impl NamespacedPod {
    fn read(self, path: &str) -> Part<PodSelection> {
        let namespaces = self.namespace_selector.map_or_else(
            || Ok(Selector::everything()),
            |labels| labels.read(&format!("{path}.namespaceSelector")),
        );
        Ok(PodSelection {
            namespaces: namespaces?,
            pods: self.pod_selector.read(&format!("{path}.podSelector"))?,
        })
    }
}

/// One field must be set, which is what an enumeration is to serde.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Subject {
    Namespaces(Labels),
    Pods(NamespacedPod),
}

fn subject(value: Option<&Value>) -> Part<PodSelection> {
    match read("spec.subject", value)? {
        Subject::Namespaces(labels) => Ok(PodSelection {
            namespaces: labels.read("spec.subject.namespaces")?,
            pods: Selector::everything(),
        }),
        Subject::Pods(pods) => pods.read("spec.subject.pods"),
    }
}

/// A peer of one direction.
trait Peer: DeserializeOwned {
    fn read(self, path: &str) -> Part<ClusterPeer>;
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum IngressPeer {
    Namespaces(Labels),
    Pods(NamespacedPod),
}

impl Peer for IngressPeer {
    fn read(self, path: &str) -> Part<ClusterPeer> {
        Ok(match self {
            IngressPeer::Namespaces(labels) => {
                ClusterPeer::Namespaces(labels.read(&format!("{path}.namespaces"))?)
            }
            IngressPeer::Pods(pods) => ClusterPeer::Pods(pods.read(&format!("{path}.pods"))?),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum EgressPeer {
    Namespaces(Labels),
    Pods(NamespacedPod),
    Nodes(Labels),
    Networks(Vec<String>),
    DomainNames(Vec<String>),
}

impl Peer for EgressPeer {
    fn read(self, path: &str) -> Part<ClusterPeer> {
        Ok(match self {
            EgressPeer::Namespaces(labels) => {
                ClusterPeer::Namespaces(labels.read(&format!("{path}.namespaces"))?)
            }
            EgressPeer::Pods(pods) => ClusterPeer::Pods(pods.read(&format!("{path}.pods"))?),
            EgressPeer::Nodes(labels) => ClusterPeer::Nodes(labels.read(&format!("{path}.nodes"))?),
            EgressPeer::Networks(texts) => {
                let path = format!("{path}.networks");
                let networks = texts.iter().map(|text| {
                    let range = network(&path, text)?;
                    if range.addr() != range.network() {
                        let why = format!("{range} has bits set beyond its prefix; write {}", range.trunc());
                        return unread(&path, why);
                    }
                    Ok(range)
                });
                ClusterPeer::Networks(some(&path, networks.collect::<Result<_, _>>()?)?)
            }
            EgressPeer::DomainNames(texts) => {
                let path = format!("{path}.domainNames");
                let names = texts.iter().map(|text| {
                    text.parse::<DomainPattern>()
                        .or_else(|error| unread(&path, error))
                });
                ClusterPeer::DomainNames(some(&path, names.collect::<Result<_, _>>()?)?)
            }
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ProtocolMatch {
    Tcp(Transport),
    Udp(Transport),
    Sctp(Transport),
    DestinationNamedPort(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Transport {
    destination_port: PortNumbers,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum PortNumbers {
    Number(i64),
    Range(Range),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    start: i64,
    end: i64,
}

impl ProtocolMatch {
    fn read(self, path: &str) -> Part<ClusterPort> {
        Ok(match self {
            ProtocolMatch::Tcp(transport) => ClusterPort::Numbers(Protocol::Tcp, transport.read(path)?),
            ProtocolMatch::Udp(transport) => ClusterPort::Numbers(Protocol::Udp, transport.read(path)?),
            ProtocolMatch::Sctp(transport) => ClusterPort::Numbers(Protocol::Sctp, transport.read(path)?),
            ProtocolMatch::DestinationNamedPort(name) => ClusterPort::Named(port_name(path, &name)?),
        })
    }
}

impl Transport {
    fn read(self, path: &str) -> Part<PortRange> {
        match self.destination_port {
            PortNumbers::Number(number) => port_range(path, "number", number, number),
            PortNumbers::Range(Range { start, end }) if start == end => {
                unread(path, format!("the range's end, {end}, must be above its start"))
            }
            PortNumbers::Range(Range { start, end }) => port_range(path, "range.end", start, end),
        }
    }
}

/// The rules of a direction. A field that is no list closes the whole direction.
fn rules<P: Peer>(value: Option<&Value>, direction: &str, field: &str) -> Vec<ClusterRule> {
    let path = format!("spec.{direction}");
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(rules)) => {
            let rules = rules.iter().enumerate();
            rules
                .map(|(i, value)| rule::<P>(&format!("{path}[{i}]"), i, value, field))
                .collect()
        }
        Some(_) => vec![ClusterRule {
            name: String::new(),
            action: unread(&path, "no list of rules"),
            matches: unread(&path, "no list of rules"),
        }],
    }
}

fn rule<P: Peer>(path: &str, index: usize, value: &Value, field: &str) -> ClusterRule {
    let name = value["name"].as_str().unwrap_or_default();
    let action = match value["action"].as_str() {
        Some("Accept") => Ok(Action::Accept),
        Some("Deny") => Ok(Action::Deny),
        Some("Pass") => Ok(Action::Pass),
        _ => unread(
            format!("{path}.action"),
            format!("{} is none of Accept, Deny and Pass", shown(value.get("action"))),
        ),
    };
    let matches = if index >= MOST {
        unread(path, format!("a policy has {MOST} rules in a direction at most"))
    } else {
        matches::<P>(path, value, field, &action)
    };
    ClusterRule {
        name: name.chars().take(LONGEST_NAME).collect(),
        action,
        matches,
    }
}

fn matches<P: Peer>(path: &str, value: &Value, field: &str, action: &Part<Action>) -> Part<ClusterMatch> {
    let known = ["name", "action", "protocols", field];
    let fields = value.as_object().into_iter().flat_map(Map::keys);
    if let Some(unknown) = fields.into_iter().find(|name| !known.contains(&name.as_str())) {
        return unread(format!("{path}.{unknown}"), "this field is not known");
    }
    let peers: Vec<Value> = read(&format!("{path}.{field}"), value.get(field))?;
    let peers = some(&format!("{path}.{field}"), peers)?.into_iter().enumerate();
    let peers = peers.map(|(i, value)| {
        let path = format!("{path}.{field}[{i}]");
        read::<P>(&path, Some(&value))?.read(&path)
    });
    let peers = peers.collect::<Result<Vec<_>, _>>()?;
    let protocols = match value.get("protocols") {
        None | Some(Value::Null) => None,
        Some(list) => {
            let path = format!("{path}.protocols");
            let list = some(&path, read::<Vec<Value>>(&path, Some(list))?)?
                .into_iter()
                .enumerate();
            let list = list.map(|(i, value)| {
                let path = format!("{path}[{i}]");
                read::<ProtocolMatch>(&path, Some(&value))?.read(&path)
            });
            Some(list.collect::<Result<Vec<_>, _>>()?)
        }
    };
    together(path, field, action, &peers, protocols.as_deref())?;
    Ok(ClusterMatch { peers, protocols })
}

/// What the API forbids to stand together.
fn together(
    path: &str,
    field: &str,
    action: &Part<Action>,
    peers: &[ClusterPeer],
    protocols: Option<&[ClusterPort]>,
) -> Part<()> {
    let domains = peers
        .iter()
        .any(|peer| matches!(peer, ClusterPeer::DomainNames(_)));
    if domains && action != &Ok(Action::Accept) {
        return unread(format!("{path}.{field}"), "domainNames are for Accept rules only");
    }
    let nameless = |peer: &ClusterPeer| {
        matches!(
            peer,
            ClusterPeer::Nodes(_) | ClusterPeer::Networks(_) | ClusterPeer::DomainNames(_)
        )
    };
    let named = |port: &ClusterPort| matches!(port, ClusterPort::Named(_));
    if peers.iter().any(nameless) && protocols.is_some_and(|protocols| protocols.iter().any(named)) {
        let why = "destinationNamedPort does not go with nodes, networks and domainNames: they name no ports";
        return unread(format!("{path}.protocols"), why);
    }
    Ok(())
}

/// A list that has something in it, and not too much.
fn some<T>(path: &str, list: Vec<T>) -> Part<Vec<T>> {
    match list.len() {
        0 => unread(path, "at least one is needed"),
        1..=MOST => Ok(list),
        more => unread(path, format!("{MOST} at most, not {more}")),
    }
}

fn read<T: DeserializeOwned>(path: &str, value: Option<&Value>) -> Part<T> {
    let value = value.cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).or_else(|error| unread(path, error))
}
