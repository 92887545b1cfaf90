//! What else happens when an object of a certain kind is made or goes: the admission plugins and the few
//! registry hooks of Kubernetes that the network needs.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use serde_json::{Value, json};

use super::metadata::{is_terminating, metadata, text};
use super::{Api, Object, Target, WriteOptions, addresses, prefix};
use crate::kinds::{Resource, crd};
use crate::registry::Registry;
use crate::status::Refusal;
use crate::store::Expect;

/// Holds a definition until its objects are gone.
const CRD_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub(super) fn is(resource: &Resource, group: &str, plural: &str) -> bool {
    resource.group() == group && resource.plural() == plural
}

pub(super) fn is_definition(resource: &Resource) -> bool {
    is(resource, "apiextensions.k8s.io", "customresourcedefinitions")
}

impl Api {
    /// Before a new object is judged.
    pub(super) async fn admit_new(&self, resource: &Resource, object: &mut Value) -> Result<(), Refusal> {
        match (resource.group(), resource.plural()) {
            ("", "pods") => admit_pod(resource, object),
            ("", "namespaces") => {
                admit_namespace(object);
                Ok(())
            }
            _ if is_definition(resource) => {
                self.establish(object).await;
                Ok(())
            }
            _ if addresses::is_service_cidr(resource) => {
                addresses::admit(object);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// After a new object is stored.
    pub(super) async fn after_create(&self, resource: &Resource, object: &Value) {
        if is(resource, "", "namespaces") {
            self.make_service_account(text(object, "name")).await;
        } else if is_definition(resource) {
            self.refresh_registry().await;
        } else if addresses::is_service_cidr(resource) {
            self.ranges_changed().await;
        }
    }

    /// After an object is changed.
    pub(super) async fn after_update(self: &Arc<Self>, resource: &Resource, object: &Object) {
        if addresses::is_service_cidr(resource) || addresses::is_ip_address(resource) {
            self.ranges_changed().await;
        }
        if !is_definition(resource) {
            return;
        }
        self.refresh_registry().await;
        if is_terminating(object.value()) {
            let (api, name) = (self.clone(), text(object.value(), "name").to_owned());
            tokio::spawn(api.empty_definition(name));
        }
    }

    /// After an object is gone.
    pub(super) async fn after_delete(&self, target: &Target, _object: &Value) {
        if is_definition(&target.resource) {
            self.refresh_registry().await;
        } else if addresses::is_service_cidr(&target.resource) || addresses::is_ip_address(&target.resource) {
            self.ranges_changed().await;
        } else if super::write::is_service(&target.resource) {
            // As kube-apiserver does: a Service's Endpoints go with it.
            let endpoints = Registry::builtin("", "v1", "endpoints");
            let endpoints = Target::new(endpoints, target.namespace.as_deref(), &target.name);
            if let Some(stored) = self.store.get(&endpoints.key()).await {
                let change = crate::store::Change::Delete(None);
                let expect = Expect::At(stored.revision);
                let write = crate::store::Write {
                    key: endpoints.key(),
                    expect,
                    change,
                };
                // Somebody else changing or deleting it first is as good.
                drop(self.store.write(write).await);
            }
        }
    }

    /// A definition's accepted names and conditions.
    pub(super) async fn establish(&self, definition: &mut Value) {
        let resource = Registry::builtin("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let listing = self.store.list(&prefix(&resource, None), None).await;
        let items = listing.map(|listing| listing.items).unwrap_or_default();
        let name = text(definition, "name").to_owned();
        let others: Vec<Value> = items
            .iter()
            .map(|stored| stored.object.clone())
            .filter(|other| text(other, "name") != name)
            .collect();
        crd::establish(definition, &others, jiff::Timestamp::now());
        let metadata = metadata(definition);
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(finalizers) = finalizers.as_array_mut()
            && !finalizers.iter().any(|one| one == CRD_FINALIZER)
            && metadata_is_new(&name, &items)
        {
            finalizers.push(CRD_FINALIZER.into());
        }
    }

    /// Deletes all objects of a definition that is going, then lets it go.
    ///
    /// Boxed, since deletes lead here and it deletes.
    fn empty_definition(self: Arc<Self>, name: String) -> BoxFuture<'static, ()> {
        async move { self.empty_and_release(&name).await }.boxed()
    }

    async fn empty_and_release(self: Arc<Self>, name: &str) {
        let resource = Registry::builtin("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let target = Target::new(resource, None, name);
        let Ok(stored) = self.stored(&target).await else {
            return;
        };
        if let Some(custom) = crd::resources(&stored.object).first() {
            loop {
                let Ok(listing) = self.store.list(&prefix(custom, None), None).await else {
                    return;
                };
                if listing.items.is_empty() {
                    break;
                }
                for item in listing.items {
                    let (namespace, name) = (text(&item.object, "namespace"), text(&item.object, "name"));
                    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
                    let object = Target::new(custom.clone(), namespace, name);
                    drop(self.delete(&object, &super::DeleteOptions::default()).await);
                }
                // Objects with finalizers go when their controllers let them.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                if self.store.get(&target.key()).await.is_none() {
                    return;
                }
            }
        }
        let outcome = self
            .change(
                &target,
                super::update::Part::Unchecked,
                WriteOptions::default(),
                &|current| {
                    let mut new = current.clone();
                    if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
                        list.retain(|one| one != CRD_FINALIZER);
                    }
                    Ok(new)
                },
            )
            .await;
        if let Err(refusal) = outcome {
            tracing::warn!(definition = name, %refusal, "cannot let go of a deleted definition");
        }
    }

    /// Every namespace has a service account `default`.
    async fn make_service_account(&self, namespace: &str) {
        let resource = Registry::builtin("", "v1", "serviceaccounts");
        let mut account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
        });
        super::metadata::stamp_new(&mut account, Some(namespace));
        resource.default(&mut account);
        resource.prepare_create(&mut account);
        let target = Target::new(resource, Some(namespace), "default");
        if let Err(refusal) = self.put(&target, Expect::Absent, account).await
            && refusal.reason() != "AlreadyExists"
        {
            tracing::warn!(namespace, %refusal, "cannot make the default service account");
        }
    }
}

fn metadata_is_new(name: &str, stored: &[Arc<crate::store::Stored>]) -> bool {
    !stored.iter().any(|one| text(&one.object, "name") == name)
}

fn admit_namespace(object: &mut Value) {
    let name = text(object, "name").to_owned();
    let finalizers = &mut object["spec"]["finalizers"];
    if finalizers.as_array().is_none_or(Vec::is_empty) {
        *finalizers = json!(["kubernetes"]);
    }
    object["status"] = json!({"phase": "Active"});
    let labels = metadata(object).entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/metadata.name"] = name.into();
}

/// ServiceAccount, Priority and DefaultTolerationSeconds.
fn admit_pod(resource: &Resource, pod: &mut Value) -> Result<(), Refusal> {
    let name = text(pod, "name").to_owned();
    let Some(spec) = pod["spec"].as_object_mut() else {
        return Ok(());
    };
    let given = spec
        .get("serviceAccountName")
        .or(spec.get("serviceAccount"))
        .and_then(Value::as_str);
    let account = given
        .filter(|account| !account.is_empty())
        .unwrap_or("default")
        .to_owned();
    spec.insert("serviceAccountName".into(), account.clone().into());
    spec.insert("serviceAccount".into(), account.into());
    let priority = match spec
        .get("priorityClassName")
        .and_then(Value::as_str)
        .unwrap_or_default()
    {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        class => {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(Refusal::forbidden(resource, &name, &why));
        }
    };
    spec.insert("priority".into(), priority.into());
    spec.entry("preemptionPolicy")
        .or_insert_with(|| "PreemptLowerPriority".into());
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |one: &Value| {
            let key_matches = one["key"] == key || one["key"].as_str().unwrap_or_default().is_empty();
            key_matches && matches!(one["effect"].as_str().unwrap_or_default(), "" | "NoExecute")
        };
        if let Some(list) = tolerations.as_array_mut()
            && !list.iter().any(covers)
        {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
    Ok(())
}
