//! Paths of the API: which group, version, namespace, resource, name and subresource a request is about.

use super::query::percent_decode;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`; the core group is empty.
    GroupVersion(String, String),
    /// Objects.
    Objects(ObjectPath),
    /// Everything else, such as `/version`.
    Other(String),
}

/// A path to a resource's objects, one of them, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPath {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, if the path names one.
    pub namespace: Option<String>,
    /// Resource, e.g. `pods`.
    pub plural: String,
    /// The object's name; `None` for the collection.
    pub name: Option<String>,
    /// e.g. `status`.
    pub subresource: Option<String>,
    /// The deprecated `/watch/` prefix.
    pub watch: bool,
}

impl Path {
    /// Parses a request's path.
    pub fn parse(path: &str) -> Path {
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(percent_decode)
            .collect();
        let words: Vec<&str> = parts.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["api"] => Path::CoreVersions,
            ["apis"] => Path::Groups,
            ["apis", group] => Path::Group((*group).to_owned()),
            ["api", version] => Path::GroupVersion(String::new(), (*version).to_owned()),
            ["apis", group, version] => Path::GroupVersion((*group).to_owned(), (*version).to_owned()),
            ["api", version, rest @ ..] => objects("", version, rest, path),
            ["apis", group, version, rest @ ..] => objects(group, version, rest, path),
            _ => Path::Other(path.to_owned()),
        }
    }
}

fn objects(group: &str, version: &str, rest: &[&str], path: &str) -> Path {
    let owned = |text: &&str| (*text).to_owned();
    let (watch, rest) = match rest {
        ["watch", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (namespace, rest) = match rest {
        // `namespaces/NAME/status` is a part of the namespace itself.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(owned(namespace)), rest),
        rest => (None, rest),
    };
    let [plural, rest @ ..] = rest else {
        return Path::Other(path.to_owned());
    };
    if rest.len() > 2 {
        return Path::Other(path.to_owned());
    }
    Path::Objects(ObjectPath {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace,
        plural: owned(plural),
        name: rest.first().map(owned),
        subresource: rest.get(1).map(owned),
        watch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str) -> ObjectPath {
        match Path::parse(path) {
            Path::Objects(path) => path,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths() {
        assert_eq!(Path::parse("/api/"), Path::CoreVersions);
        assert_eq!(
            Path::parse("/apis/apps/v1"),
            Path::GroupVersion("apps".into(), "v1".into())
        );
        assert_eq!(Path::parse("/version"), Path::Other("/version".into()));
        let pod = object("/api/v1/namespaces/default/pods/a/log");
        assert_eq!(pod.namespace.as_deref(), Some("default"));
        assert_eq!(
            (
                pod.plural.as_str(),
                pod.name.as_deref(),
                pod.subresource.as_deref()
            ),
            ("pods", Some("a"), Some("log"))
        );
        let namespace = object("/api/v1/namespaces/default/finalize");
        assert_eq!(
            (namespace.namespace, namespace.plural.as_str()),
            (None, "namespaces")
        );
        let namespace = object("/api/v1/namespaces/default");
        assert_eq!(namespace.name.as_deref(), Some("default"));
        let all = object("/apis/apps/v1/deployments");
        assert_eq!((all.namespace, all.name), (None, None));
        assert!(object("/api/v1/watch/namespaces/default/pods").watch);
    }
}
