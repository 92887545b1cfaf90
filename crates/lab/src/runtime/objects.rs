//! The ConfigMaps, Secrets and Services that pods read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use super::pod::env;

/// How long a pod's start waits for an API server that does not answer before it takes what is remembered.
const PATIENCE: Duration = Duration::from_secs(3);

/// A ConfigMap or Secret that was created, changed or deleted: its namespace and name.
pub type Change = (String, String);

/// What is known of these objects.
pub struct Objects {
    client: kube::Client,
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
    services: Store<Service>,
    changes: broadcast::Sender<Change>,
    /// The watches; they end with this value.
    tasks: Mutex<tokio::task::JoinSet<()>>,
}

/// The objects that one pod asked for.
#[derive(Debug, Default)]
pub struct Fetched {
    config_maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
}

impl env::Objects for Fetched {
    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)
    }

    fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }
}

impl Objects {
    /// Starts watching.
    pub fn watch(client: &kube::Client) -> Objects {
        let (changes, _) = broadcast::channel(256);
        let mut tasks = tokio::task::JoinSet::new();
        let config_maps = follow(client, &mut tasks, Some(changes.clone()));
        let secrets = follow(client, &mut tasks, Some(changes.clone()));
        let services = follow(client, &mut tasks, None);
        let client = client.clone();
        Objects {
            client,
            config_maps,
            secrets,
            services,
            changes,
            tasks: Mutex::new(tasks),
        }
    }

    /// Tells of ConfigMaps and Secrets that change from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Waits until the services are known: a pod started before would lack their variables.
    pub async fn ready(&self) {
        // The writer is dropped only with the task, which lives as long as this value.
        let _ = self.services.wait_until_ready().await;
    }

    /// The services that are known.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.services.state()
    }

    /// Ends the watches.
    pub fn stop(&self) {
        self.tasks.lock().abort_all();
    }

    /// The objects of these names as the API has them now. A watch may be a moment behind the pod that refers to
    /// the object, so the API is asked; what the watch knows is for when the API is away.
    pub async fn fetch(&self, namespace: &str, (config_maps, secrets): (Vec<&str>, Vec<&str>)) -> Fetched {
        Fetched {
            config_maps: self.get(namespace, config_maps, &self.config_maps).await,
            secrets: self.get(namespace, secrets, &self.secrets).await,
        }
    }

    async fn get<K>(&self, namespace: &str, mut names: Vec<&str>, store: &Store<K>) -> BTreeMap<String, K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + 'static,
    {
        names.sort_unstable();
        names.dedup();
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let mut found = BTreeMap::new();
        for name in names {
            let object = match tokio::time::timeout(PATIENCE, api.get_opt(name)).await {
                Ok(Ok(object)) => object,
                _ => store
                    .get(&ObjectRef::new(name).within(namespace))
                    .map(|it| (*it).clone()),
            };
            found.extend(object.map(|object| (name.to_owned(), object)));
        }
        found
    }
}

fn follow<K>(
    client: &kube::Client,
    tasks: &mut tokio::task::JoinSet<()>,
    changes: Option<broadcast::Sender<Change>>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).modify(|object| {
        object.managed_fields_mut().clear();
    });
    let stream = reflector::reflector(writer, stream.default_backoff());
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => tell(event, changes.as_ref()),
                Err(error) => tracing::debug!(%error, kind = %K::kind(&()), "watching"),
            }
        }
    });
    store
}

fn tell<K: Resource>(event: watcher::Event<K>, changes: Option<&broadcast::Sender<Change>>) {
    let Some(changes) = changes else { return };
    // Objects of a relist may have changed while the watch was down: telling of them is cheap, an unchanged
    // volume is left as it is.
    if let watcher::Event::Apply(object)
    | watcher::Event::Delete(object)
    | watcher::Event::InitApply(object) = event
    {
        // No receiver: no pod.
        let _ = changes.send((object.namespace().unwrap_or_default(), object.name_any()));
    }
}
