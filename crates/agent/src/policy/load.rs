//! Manifests into a cluster that policies can be judged for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use miette::{Context, IntoDiagnostic, miette};
use podnet_core::cluster::{Cluster, ClusterConfig, NodeName, ObjectName, Pod};
use podnet_core::flow::Traffic;
use podnet_manifest::{Manifest, ManifestError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::parse;

/// What files say of a cluster.
#[derive(Debug)]
pub struct Loaded {
    /// Its objects. Every pod has a node and, if the ranges allow, addresses.
    pub cluster: Cluster,
    /// The ports each pod declares.
    pub ports: BTreeMap<ObjectName, Vec<Traffic>>,
    /// What was assumed or left out.
    pub notes: BTreeSet<String>,
}

/// Reads files, and directories with all below them. Objects without a namespace get `namespace`; pods without an address
/// get one of `ranges`.
pub fn load(paths: &[PathBuf], namespace: &str, ranges: &[IpNet]) -> miette::Result<Loaded> {
    let mut loaded = Loaded {
        cluster: Cluster::new(ClusterConfig::default()),
        ports: BTreeMap::new(),
        notes: BTreeSet::new(),
    };
    let mut seen = BTreeSet::new();
    for file in files(paths)? {
        for manifest in podnet_manifest::read(&file)? {
            let (kind, name) = (manifest.kind(), manifest.name());
            let key = [manifest.api_version(), kind, manifest.namespace(), name].map(str::to_owned);
            if !seen.insert(key) {
                let message = format!("a second {kind} {name}; policies cannot be judged for both");
                return Err(manifest
                    .error(&["metadata".into(), "name".into()], message)
                    .into());
            }
            loaded.take(manifest, namespace)?;
        }
    }
    loaded.place(ranges);
    Ok(loaded)
}

/// Files as they are named; of directories, what ends in .yaml, .yml or .json, in order.
fn files(paths: &[PathBuf]) -> miette::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = found.len();
            below(path, &mut found)?;
            if found.len() == before {
                return Err(miette!(
                    "{}: no file ends in .yaml, .yml or .json",
                    path.display()
                ));
            }
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

fn below(dir: &Path, found: &mut Vec<PathBuf>) -> miette::Result<()> {
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries
        .into_diagnostic()
        .wrap_err_with(|| format!("reading {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let manifest = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if path.is_dir() {
            below(&path, found)?;
        } else if manifest {
            found.push(path);
        }
    }
    Ok(())
}

impl Loaded {
    fn take(&mut self, mut manifest: Manifest, namespace: &str) -> Result<(), ManifestError> {
        if manifest.object["metadata"]["namespace"].is_null() {
            manifest.object["metadata"]["namespace"] = json!(namespace);
        }
        let group = manifest
            .api_version()
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        match (group, manifest.kind()) {
            ("", "Pod") => self.pod(&manifest, &[])?,
            ("", "ReplicationController")
            | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
            | ("batch", "Job") => self.pod(&manifest, &["spec", "template"])?,
            ("batch", "CronJob") => self.pod(&manifest, &["spec", "jobTemplate", "spec", "template"])?,
            ("", "Namespace") => {
                let (name, namespace) = parse::namespace(&typed(&manifest)?);
                self.cluster.namespaces.insert(name, namespace);
            }
            ("", "Node") => {
                if let Some((name, node)) = parse::node(&typed::<core::Node>(&manifest)?) {
                    self.cluster.nodes.insert(name, node);
                }
            }
            ("networking.k8s.io", "NetworkPolicy") => {
                let object: NetworkPolicy = typed(&manifest)?;
                known(&manifest, &object)?;
                let (name, policy) = parse::network_policy(&object);
                self.cluster.network_policies.insert(name, Ok(policy));
            }
            ("policy.networking.k8s.io", "ClusterNetworkPolicy") => {
                // The object has no namespace; the name is all that was read of it above.
                let (name, policy) = parse::cluster_network_policy(&typed(&manifest)?);
                self.cluster.cluster_network_policies.insert(name, Ok(policy));
            }
            ("policy.networking.k8s.io", kind @ ("AdminNetworkPolicy" | "BaselineAdminNetworkPolicy")) => {
                self.notes.insert(format!(
                    "{kind} {} is left out: write it as a ClusterNetworkPolicy, which replaces it",
                    manifest.name()
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// A pod, or the one that stands for all that a template makes.
    fn pod(&mut self, manifest: &Manifest, template: &[&str]) -> Result<(), ManifestError> {
        let mut pod: core::Pod = if template.is_empty() {
            typed(manifest)?
        } else {
            let inner = template
                .iter()
                .fold(&manifest.object, |value, step| &value[*step]);
            let path: Vec<String> = template.iter().map(|&step| step.to_owned()).collect();
            serde_json::from_value(inner.clone()).map_err(|error| manifest.error(&path, error.to_string()))?
        };
        pod.metadata.namespace = manifest.object["metadata"]["namespace"]
            .as_str()
            .map(str::to_owned);
        let mut name = manifest.name().to_owned();
        let taken = |name: &str| {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            self.cluster.pods.contains_key(&ObjectName::new(namespace, name))
        };
        if taken(&name) {
            name = format!("{name}-{}", manifest.kind().to_lowercase());
        }
        pod.metadata.name = Some(name);
        let (name, parsed) = parse::pod(&pod);
        let parsed = parsed.map_err(|invalid| manifest.error(&["spec".into()], invalid.why))?;
        self.ports.insert(name.clone(), declared(&pod));
        self.cluster.pods.insert(name, Ok(parsed));
        Ok(())
    }

    /// Gives pods what only a running cluster would tell.
    fn place(&mut self, ranges: &[IpNet]) {
        let taken = self.cluster.valid_pods().flat_map(|pod| pod.addresses.clone());
        let mut taken: BTreeSet<IpAddr> = taken.collect();
        let addresses: BTreeMap<NodeName, Vec<IpAddr>> = self
            .cluster
            .valid_nodes()
            .map(|node| (node.name.clone(), node.all_addresses.iter().copied().collect()))
            .collect();
        let mut assumed = false;
        for pod in self.cluster.pods.values_mut().flatten() {
            if pod.node.is_none() {
                pod.node = NodeName::new("unscheduled").ok();
            }
            if pod.host_network {
                let node = pod.node.as_ref().and_then(|node| addresses.get(node));
                pod.addresses = node.cloned().unwrap_or_default();
                if pod.addresses.is_empty() {
                    let name = &pod.name;
                    self.notes.insert(format!(
                        "{name} uses its node's network, and no manifest tells of its node: left out"
                    ));
                }
            } else if pod.addresses.is_empty() {
                give(pod, ranges, &mut taken);
                assumed = true;
            }
        }
        if assumed {
            let ranges: Vec<_> = ranges.iter().map(IpNet::to_string).collect();
            self.notes.insert(format!(
                "pods without an address were given one of {}; rules about addresses may see them otherwise",
                ranges.join(", ")
            ));
        }
        let homeless = self.cluster.pods.keys().map(|name| &name.namespace);
        for namespace in homeless.chain(self.cluster.network_policies.keys().map(|name| &name.namespace)) {
            if !self.cluster.namespaces.contains_key(namespace) {
                self.notes.insert(format!(
                    "no manifest of namespace {namespace}: it is taken to have no labels but its name"
                ));
            }
        }
    }
}

fn give(pod: &mut Pod, ranges: &[IpNet], taken: &mut BTreeSet<IpAddr>) {
    for range in ranges {
        // The first addresses of a range are the network's own and its gateway's.
        if let Some(address) = range.hosts().skip(1).find(|address| !taken.contains(address)) {
            taken.insert(address);
            pod.addresses.push(address);
        }
    }
}

/// Every port of a pod's containers.
fn declared(pod: &core::Pod) -> Vec<Traffic> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let traffic = ports.filter_map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").parse().ok()?;
        let number = u16::try_from(port.container_port).ok()?.try_into().ok()?;
        Some(Traffic::Port(protocol, number))
    });
    traffic.collect::<BTreeSet<_>>().into_iter().collect()
}

fn typed<T: DeserializeOwned>(manifest: &Manifest) -> Result<T, ManifestError> {
    serde_json::from_value(manifest.object.clone()).map_err(|error| {
        manifest.error(
            &["spec".into()],
            format!("{} cannot be read: {error}", manifest.kind()),
        )
    })
}

/// Refuses a field that the kind does not have: what is judged here is what a cluster would enforce.
fn known(manifest: &Manifest, object: &impl Serialize) -> Result<(), ManifestError> {
    let read = serde_json::to_value(object).unwrap_or_default();
    let mut path = Vec::new();
    if lost(&manifest.object["spec"], &read["spec"], &mut path) {
        path.insert(0, "spec".to_owned());
        let message = format!("{} has no field {}", manifest.kind(), path.join("."));
        return Err(manifest.error(&path, message));
    }
    Ok(())
}

/// Finds what is written and was not read; `path` leads to it.
fn lost(written: &Value, read: &Value, path: &mut Vec<String>) -> bool {
    let steps: Vec<(String, &Value, Option<&Value>)> = match written {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), value, read.get(name)))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, value)| (i.to_string(), value, read.get(i)))
            .collect(),
        _ => return false,
    };
    for (step, written, read) in steps {
        path.push(step);
        match read {
            None if !written.is_null() => return true,
            Some(read) if lost(written, read, path) => return true,
            _ => _ = path.pop(),
        }
    }
    false
}
