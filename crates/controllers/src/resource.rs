//! What a resource of the API is called.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, ClusterResourceScope, NamespaceResourceScope};

/// A resource of the API: its group, version and names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Kind, in upper camel case.
    pub kind: String,
    /// Plural name, as in paths.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// Where objects of a statically known type live.
pub trait Scoped {
    /// Whether they live in namespaces.
    const NAMESPACED: bool;
}

impl Scoped for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl Scoped for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl Resource {
    /// The resource of a type of k8s-openapi.
    pub fn of<K>() -> Resource
    where
        K: kube::Resource<DynamicType = ()>,
        K::Scope: Scoped,
    {
        Resource {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            namespaced: K::Scope::NAMESPACED,
        }
    }

    /// `group/version`, or just the version in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether `other` names the same objects, perhaps in another version.
    pub fn same_objects(&self, other: &Resource) -> bool {
        self.group == other.group && self.plural == other.plural
    }

    /// As kube's dynamic API wants it.
    pub fn erased(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }

    /// An API handle for its objects, in `namespace` where it has one.
    pub fn api(&self, client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) if self.namespaced => {
                Api::namespaced_with(client.clone(), namespace, &self.erased())
            }
            _ => Api::all_with(client.clone(), &self.erased()),
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}

/// Namespace and name; the namespace is empty for objects of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object of the cluster.
    pub fn cluster(name: impl Into<String>) -> Key {
        Key {
            namespace: String::new(),
            name: name.into(),
        }
    }

    /// The one key of controllers that look at everything at once.
    pub fn all() -> Key {
        Key::default()
    }

    /// The key of the object with this metadata.
    pub fn of(meta: &ObjectMeta) -> Key {
        Key::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// An object of any kind, reduced to what ownership needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Its resource.
    pub resource: Arc<Resource>,
    /// Its metadata without labels, annotations and managed fields.
    pub metadata: ObjectMeta,
}

impl Meta {
    /// Keeps what ownership needs of `metadata`.
    pub fn new(resource: &Arc<Resource>, metadata: &ObjectMeta) -> Meta {
        let metadata = ObjectMeta {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            owner_references: metadata.owner_references.clone(),
            finalizers: metadata.finalizers.clone(),
            deletion_timestamp: metadata.deletion_timestamp.clone(),
            ..ObjectMeta::default()
        };
        Meta {
            resource: resource.clone(),
            metadata,
        }
    }

    /// Its unique id; empty only for objects that no server made.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether it carries the finalizer `name`.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|f| f == name)
    }

    /// Whether its deletion was asked for.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}
