//! Which resources are served: the built-in ones and those of established CustomResourceDefinitions.

use std::collections::HashMap;

use crate::kinds::{Resource, builtin};

/// All served resources, by group, version and plural name.
#[derive(Debug)]
pub struct Registry {
    resources: Vec<Resource>,
    index: HashMap<(String, String, String), usize>,
}

impl Registry {
    /// The built-in resources and these.
    pub fn new(custom: impl IntoIterator<Item = Resource>) -> Registry {
        let mut registry = Registry {
            resources: Vec::new(),
            index: HashMap::new(),
        };
        for resource in builtin().iter().map(Resource::from).chain(custom) {
            let key = (
                resource.group().to_owned(),
                resource.version().to_owned(),
                resource.plural().to_owned(),
            );
            // A definition cannot take a built-in's place.
            if let std::collections::hash_map::Entry::Vacant(entry) = registry.index.entry(key) {
                entry.insert(registry.resources.len());
                registry.resources.push(resource);
            }
        }
        registry
    }

    /// All resources.
    pub fn all(&self) -> &[Resource] {
        &self.resources
    }

    /// One resource.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.index.get(&key).map(|&at| &self.resources[at])
    }

    /// A built-in resource that the server itself works with.
    pub fn builtin(group: &str, version: &str, plural: &str) -> Resource {
        let mut kinds = builtin().iter();
        let kind = kinds.find(|kind| kind.group == group && kind.version == version && kind.plural == plural);
        kind.expect("the server's own kinds are built in").into()
    }

    /// The groups with their versions in order of preference.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in &self.resources {
            let group = match groups.iter_mut().find(|(group, _)| group == resource.group()) {
                Some(group) => group,
                None => {
                    groups.push((resource.group().to_owned(), Vec::new()));
                    groups.last_mut().expect("just pushed")
                }
            };
            if !group.1.iter().any(|version| version == resource.version()) {
                group.1.push(resource.version().to_owned());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups
    }
}

/// Kubernetes' version order: v2 over v1 over v1beta2 over v1beta1 over v1alpha1 over anything else.
fn priority(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        let (stage, minor) = match rest.strip_prefix("beta") {
            Some(minor) => (2, minor),
            None => (1, rest.strip_prefix("alpha")?),
        };
        Some((stage, major, minor.parse().ok()?))
    };
    parse().unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let mut versions = ["foo", "v1alpha1", "v1", "v1beta2", "v2", "v1beta10"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]);
    }
}
