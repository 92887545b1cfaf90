//! Pods by what policies can tell them by, interned.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::cluster::{Cluster, Labels, NamedPort, Namespace, Pod, PodSelection, PolicyPort, Protocol};

/// A label set's name: a digest of what is in it. It needs no history: any node gives the same name to the same labels,
/// and no name changes when another comes or goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSetId(u128);

impl LabelSetId {
    /// The name as a number, of which data planes make keys of their own.
    pub fn number(self) -> u128 {
        self.0
    }
}

/// The labels of pods that no policy can tell apart, and the pods' addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    /// The namespace's labels.
    pub namespace: Labels,
    /// The pods' labels.
    pub pods: Labels,
    /// The names they give to ports: a named port is the same number in all of them.
    pub ports: BTreeSet<NamedPort>,
    /// Their addresses, wherever in the cluster they run.
    pub members: BTreeSet<IpAddr>,
}

impl LabelSet {
    /// Whether a selection has these pods in it.
    pub fn is_in(&self, selection: &PodSelection) -> bool {
        selection.namespaces.matches(&self.namespace) && selection.pods.matches(&self.pods)
    }

    /// The numbers these pods mean by a port's name, of one protocol or of any.
    pub fn named<'a>(
        &'a self,
        protocol: Option<Protocol>,
        name: &'a str,
    ) -> impl Iterator<Item = (Protocol, NonZeroU16)> + 'a {
        let wanted = move |port: &&NamedPort| {
            port.name == name && protocol.is_none_or(|protocol| protocol == port.protocol)
        };
        self.ports
            .iter()
            .filter(wanted)
            .map(|port| (port.protocol, port.port))
    }

    /// Whether a port is one of those that are meant in these pods.
    pub fn means(&self, wanted: &PolicyPort, protocol: Protocol, port: NonZeroU16) -> bool {
        match wanted {
            PolicyPort::Numbers(range) => range.contains(port),
            PolicyPort::Named(name) => self.named(Some(protocol), name).any(|(_, number)| number == port),
        }
    }
}

/// Every label set of a cluster. Pods that share their node's network and pods that have ended are in none.
#[derive(Debug, Default)]
pub struct LabelSets {
    sets: BTreeMap<LabelSetId, LabelSet>,
    /// The namespace's name leads to its sets: most selections are about one namespace.
    by_namespace: BTreeMap<String, BTreeSet<LabelSetId>>,
}

impl LabelSets {
    /// From the pods that exist now.
    pub fn of(cluster: &Cluster) -> Self {
        let mut all = LabelSets::default();
        let mut known: BTreeMap<(&str, &Labels, &BTreeSet<NamedPort>), LabelSetId> = BTreeMap::new();
        for pod in cluster.valid_pods().filter(|pod| pod.has_own_network()) {
            let namespace = pod.name.namespace.as_str();
            // 110 pods of a deployment are digested once.
            let id = *known
                .entry((namespace, &pod.labels, &pod.ports))
                .or_insert_with(|| {
                    let labels = namespace_labels(cluster, namespace);
                    let id = digest(&labels, pod);
                    all.sets.entry(id).or_insert_with(|| LabelSet {
                        namespace: labels,
                        pods: pod.labels.clone(),
                        ports: pod.ports.clone(),
                        members: BTreeSet::new(),
                    });
                    all.by_namespace
                        .entry(namespace.to_owned())
                        .or_default()
                        .insert(id);
                    id
                });
            if let Some(set) = all.sets.get_mut(&id) {
                set.members.extend(cluster.addresses_of(pod));
            }
        }
        all
    }

    /// One of them.
    pub fn get(&self, id: LabelSetId) -> Option<&LabelSet> {
        self.sets.get(&id)
    }

    /// The name of a pod's own set.
    pub fn id_of(cluster: &Cluster, pod: &Pod) -> LabelSetId {
        digest(&namespace_labels(cluster, &pod.name.namespace), pod)
    }

    /// Those in a selection.
    pub fn select(&self, selection: &PodSelection) -> BTreeSet<LabelSetId> {
        let chosen = |id: &&LabelSetId| self.sets[*id].is_in(selection);
        match selection.namespaces.namespace_name() {
            Some(name) => self
                .by_namespace
                .get(name)
                .into_iter()
                .flatten()
                .filter(chosen)
                .copied()
                .collect(),
            None => self.sets.keys().filter(chosen).copied().collect(),
        }
    }
}

/// A pod whose namespace is not known yet has a namespace with nothing but its name.
fn namespace_labels(cluster: &Cluster, name: &str) -> Labels {
    match cluster.namespaces.get(name) {
        Some(namespace) => namespace.labels().clone(),
        None => Namespace::new(name, Labels::new()).labels().clone(),
    }
}

fn digest(namespace: &Labels, pod: &Pod) -> LabelSetId {
    let mut hash = Sha256::new();
    // Every part is preceded by its length, so that no two label sets are written alike.
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    for labels in [namespace, &pod.labels] {
        add(&labels.len().to_string());
        for (key, value) in labels {
            add(key);
            add(value);
        }
    }
    for port in &pod.ports {
        add(&port.name);
        add(&format!("{}/{}", port.protocol, port.port));
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    LabelSetId(u128::from_be_bytes(first))
}

/// A label set's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a label set: 32 hexadecimal digits")]
pub struct LabelSetIdError(String);

impl fmt::Display for LabelSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for LabelSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LabelSetId {
    type Err = LabelSetIdError;

    fn from_str(text: &str) -> Result<Self, LabelSetIdError> {
        let digits = text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number
            .map(LabelSetId)
            .ok_or_else(|| LabelSetIdError(text.to_owned()))
    }
}
