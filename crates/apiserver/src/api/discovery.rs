//! Discovery: which groups, versions and resources there are, document by document or all at once.

use serde_json::{Value, json};

use super::Api;
use crate::kinds::Resource;
use crate::registry::Registry;
use crate::status::Refusal;

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "gitVersion": "v1.36.0+podnet", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// A part of a resource: its name, the kind of its body, its verbs.
struct Part {
    name: &'static str,
    group: String,
    version: String,
    kind: String,
    verbs: &'static [&'static str],
}

fn parts(resource: &Resource) -> Vec<Part> {
    let own = |name, verbs| Part {
        name,
        group: resource.group().to_owned(),
        version: resource.version().to_owned(),
        kind: resource.kind().to_owned(),
        verbs,
    };
    let other = |name, group: &str, version: &str, kind: &str, verbs| Part {
        name,
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs,
    };
    let mut parts = Vec::new();
    if resource.has_status() {
        parts.push(own("status", &PART_VERBS[..]));
    }
    if resource.scale().is_some() {
        parts.push(other("scale", "autoscaling", "v1", "Scale", &PART_VERBS));
    }
    match (resource.group(), resource.plural()) {
        ("", "namespaces") => parts.push(own("finalize", &["update"])),
        ("", "pods") => parts.extend([
            other("attach", "", "v1", "PodAttachOptions", &["create", "get"]),
            other("binding", "", "v1", "Binding", &["create"]),
            other("eviction", "policy", "v1", "Eviction", &["create"]),
            other("exec", "", "v1", "PodExecOptions", &["create", "get"]),
            own("log", &["get"]),
        ]),
        _ => {}
    }
    parts
}

/// `/api`
pub(crate) fn core_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// `/apis`
pub(crate) fn groups(registry: &Registry) -> Value {
    let groups = registry
        .groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty());
    let groups: Vec<Value> = groups
        .map(|(group, versions)| group_value(&group, &versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub(crate) fn group(registry: &Registry, name: &str) -> Result<Value, Refusal> {
    let found = registry
        .groups()
        .into_iter()
        .find(|(group, _)| group == name && !name.is_empty());
    let (group, versions) = found.ok_or_else(Refusal::no_such_resource)?;
    let mut value = json!({"kind": "APIGroup", "apiVersion": "v1"});
    for (key, field) in group_value(&group, &versions).as_object().into_iter().flatten() {
        value[key] = field.clone();
    }
    Ok(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub(crate) fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, Refusal> {
    let mut found: Vec<&Resource> = registry
        .all()
        .iter()
        .filter(|r| r.group() == group && r.version() == version)
        .collect();
    if found.is_empty() {
        return Err(Refusal::no_such_resource());
    }
    found.sort_by_key(|resource| resource.plural().to_owned());
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let list: Vec<Value> = found.into_iter().flat_map(plain_entries).collect();
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

fn plain_entries(resource: &Resource) -> Vec<Value> {
    let mut entry = json!({
        "name": resource.plural(), "singularName": resource.singular(), "namespaced": resource.namespaced(),
        "kind": resource.kind(), "verbs": VERBS,
    });
    if !resource.short_names().is_empty() {
        entry["shortNames"] = json!(resource.short_names());
    }
    if !resource.categories().is_empty() {
        entry["categories"] = json!(resource.categories());
    }
    let mut entries = vec![entry];
    for part in parts(resource) {
        let mut entry = json!({
            "name": format!("{}/{}", resource.plural(), part.name), "singularName": "",
            "namespaced": resource.namespaced(), "kind": part.kind, "verbs": part.verbs,
        });
        if part.group != resource.group() || part.version != resource.version() {
            entry["group"] = part.group.into();
            entry["version"] = part.version.into();
        }
        entries.push(entry);
    }
    entries
}

/// `APIGroupDiscoveryList`, of the core group (`/api`) or of all others (`/apis`).
pub(crate) fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let groups = registry
        .groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions = versions
                .iter()
                .map(|version| aggregated_version(registry, &group, version));
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    })
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    let mut found: Vec<&Resource> = registry
        .all()
        .iter()
        .filter(|r| r.group() == group && r.version() == version)
        .collect();
    found.sort_by_key(|resource| resource.plural().to_owned());
    let resources: Vec<Value> = found.into_iter().map(aggregated_entry).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_entry(resource: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": resource.plural(),
        "responseKind": kind(resource.group(), resource.version(), resource.kind()),
        "scope": if resource.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular(),
        "verbs": VERBS,
    });
    if !resource.short_names().is_empty() {
        entry["shortNames"] = json!(resource.short_names());
    }
    if !resource.categories().is_empty() {
        entry["categories"] = json!(resource.categories());
    }
    let parts = parts(resource).into_iter().map(|part| {
        json!({
            "subresource": part.name, "responseKind": kind(&part.group, &part.version, &part.kind), "verbs": part.verbs,
        })
    });
    let parts: Vec<Value> = parts.collect();
    if !parts.is_empty() {
        entry["subresources"] = parts.into();
    }
    entry
}

impl Api {
    /// `/openapi/v2`, as JSON.
    pub fn openapi_json(&self) -> Value {
        crate::kinds::openapi::v2_json(self.registry().all())
    }

    /// `/openapi/v2`, as protobuf.
    pub fn openapi_protobuf(&self) -> Vec<u8> {
        crate::kinds::openapi::v2_protobuf(self.registry().all())
    }
}
