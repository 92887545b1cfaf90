//! What the API does with objects: the verbs, over the store.

mod addresses;
mod binding;
mod delete;
mod discovery;
mod hooks;
mod list;
mod metadata;
mod scale;
mod table;
mod update;
mod watch;
mod write;

pub use delete::DeleteOptions;
pub use discovery::version;
pub(crate) use discovery::{aggregated, core_versions, group, groups, resources};
pub use list::ListQuery;
pub use table::{IncludeObject, render, render_list};
pub use update::Part;
pub use watch::{WatchQuery, WatchStream};
pub use write::{Validation, WriteOptions};

use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::RwLock;
use serde_json::Value;

use crate::kinds::{Resource, crd};
use crate::registry::Registry;
use crate::services::Allocations;
use crate::status::Refusal;
use crate::store::{RevisionError, Store, Stored};

/// The API over a store.
pub struct Api {
    store: Arc<dyn Store>,
    registry: RwLock<Arc<Registry>>,
    services: tokio::sync::Mutex<Allocations>,
    kubelets: Option<PathBuf>,
}

/// One object, existing or not.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its resource.
    pub resource: Resource,
    /// Its namespace, if the resource has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Target {
    /// Names an object.
    pub fn new(resource: Resource, namespace: Option<&str>, name: &str) -> Target {
        Target {
            resource,
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    /// Its key in the store.
    pub fn key(&self) -> String {
        format!(
            "{}{}",
            prefix(&self.resource, self.namespace.as_deref()),
            self.name
        )
    }

    fn not_found(&self) -> Refusal {
        Refusal::not_found(&self.resource, &self.name)
    }
}

/// The store's prefix of a resource, in one namespace or in all.
pub fn prefix(resource: &Resource, namespace: Option<&str>) -> String {
    let (group, plural) = resource.stored_as();
    let group = if group.is_empty() { "core" } else { group };
    match namespace {
        Some(namespace) => format!("{group}/{plural}/{namespace}/"),
        None => format!("{group}/{plural}/"),
    }
}

/// An object to answer with.
#[derive(Clone, Debug)]
pub enum Object {
    /// As it is stored; its JSON is shared.
    Stored(Arc<Stored>),
    /// Made for this answer.
    Made(Value),
}

/// A verb's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP code.
    pub code: StatusCode,
    /// The object.
    pub object: Object,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Answer {
    fn ok(object: Object) -> Answer {
        Answer {
            code: StatusCode::OK,
            object,
            warnings: Vec::new(),
        }
    }
}

/// The object in the form of this resource's version; the stored one itself when that is its form.
pub(crate) fn in_version(resource: &Resource, stored: &Arc<Stored>) -> Object {
    if stored.object["apiVersion"] == resource.api_version().as_str() {
        return Object::Stored(stored.clone());
    }
    let mut object = stored.object.clone();
    resource.from_storage(&mut object);
    Object::Made(object)
}

impl Object {
    /// The object itself.
    pub fn value(&self) -> &Value {
        match self {
            Object::Stored(stored) => &stored.object,
            Object::Made(value) => value,
        }
    }

    /// Its JSON.
    pub fn json(&self) -> bytes::Bytes {
        match self {
            Object::Stored(stored) => stored.json().clone(),
            Object::Made(value) => serde_json::to_vec(value).unwrap_or_default().into(),
        }
    }
}

impl Api {
    /// The API over `store`; `kubelets` is where the nodes' kubelet sockets are (`NODE.sock`). There is none when the
    /// store does not tell what Services have: their addresses would be given again.
    pub async fn new(
        store: Arc<dyn Store>,
        services: Allocations,
        kubelets: Option<PathBuf>,
    ) -> Result<Api, RevisionError> {
        let registry = RwLock::new(Arc::new(Registry::new([])));
        let api = Api {
            store,
            registry,
            services: tokio::sync::Mutex::new(services),
            kubelets,
        };
        api.refresh_registry().await;
        let stored = api.all_services().await?;
        let mut services = api.services.lock().await;
        stored.iter().for_each(|stored| services.restore(&stored.object));
        drop(services);
        // A crash may have come between a Service's write and those that follow it.
        api.follow_ranges().await?;
        Ok(api)
    }

    /// What is served now.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.read().clone()
    }

    /// Where the kubelet sockets are.
    pub fn kubelets(&self) -> Option<&PathBuf> {
        self.kubelets.as_ref()
    }

    /// Takes the CustomResourceDefinitions anew.
    pub(crate) async fn refresh_registry(&self) {
        let definitions = Registry::builtin("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        if let Ok(listing) = self.store.list(&prefix(&definitions, None), None).await {
            let custom = listing
                .items
                .iter()
                .flat_map(|stored| crd::resources(&stored.object));
            *self.registry.write() = Arc::new(Registry::new(custom));
        }
    }

    /// The stored object, or 404.
    pub(crate) async fn stored(&self, target: &Target) -> Result<Arc<Stored>, Refusal> {
        self.store
            .get(&target.key())
            .await
            .ok_or_else(|| target.not_found())
    }

    /// GET of one object.
    pub async fn get(&self, target: &Target) -> Result<Answer, Refusal> {
        let stored = self.stored(target).await?;
        Ok(Answer::ok(in_version(&target.resource, &stored)))
    }
}
