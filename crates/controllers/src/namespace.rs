//! Namespace deletion: everything in it goes first, custom resources too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::action::{Action, Op, Target};
use crate::control::{Context, Controller, Plan};
use crate::resource::{Key, Resource};
use crate::world::{Change, Kind, World};

/// The controller of namespaces that are being deleted.
#[derive(Debug)]
pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn component(&self) -> &'static str {
        "namespace-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Namespace, Kind::Everything]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let name = match change {
            Change::Namespace(delta) => Some(delta.key().name),
            // Every object that leaves may be the last.
            Change::Meta(delta) => delta
                .sides()
                .next()
                .and_then(|meta| meta.metadata.namespace.clone()),
            _ => None,
        };
        let going = |key: &Key| {
            let namespace = world.namespaces.get(key);
            namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        };
        keys.extend(name.map(Key::cluster).filter(going));
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let Some(namespace) = world.namespaces.get(key) else {
            return Plan::nothing();
        };
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.as_deref());
        let ours = finalizers.unwrap_or_default().iter().any(|f| f == "kubernetes");
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Plan::nothing();
        }
        let mut staying: BTreeMap<&Arc<Resource>, bool> = BTreeMap::new();
        for meta in world.owners.within(&key.name) {
            *staying.entry(&meta.resource).or_default() |= !meta.deleting();
        }
        if staying.is_empty() {
            return vec![Action::new(
                Target::of(&**namespace),
                Op::Finalize(namespaced(world)),
            )]
            .into();
        }
        // Those that are already going only need time.
        let asked = staying.into_iter().filter(|(_, any)| *any);
        asked
            .map(|(resource, _)| delete_all(resource, &key.name))
            .collect()
    }
}

fn delete_all(resource: &Resource, namespace: &str) -> Action {
    let target = Target {
        resource: resource.clone(),
        key: Key::new(namespace, ""),
        uid: None,
    };
    Action::new(target, Op::DeleteAll)
}

/// All that a namespace may hold. Events are not watched, but are there.
fn namespaced(world: &World) -> Vec<Resource> {
    let known = world
        .resources()
        .unwrap_or_default()
        .iter()
        .filter(|r| r.namespaced)
        .map(|r| (**r).clone());
    known
        .chain([Resource::of::<k8s_openapi::api::core::v1::Event>()])
        .collect()
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use kube::core::PartialObjectMeta;
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::world::Observation;

    fn world(deleting: bool, objects: &[(&str, bool)]) -> World {
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        let mut world = World::watching([Kind::Namespace, Kind::Everything]);
        let maps = Arc::new(Resource::of::<ConfigMap>());
        let resources = vec![maps.clone(), Arc::new(Resource::of::<Namespace>())];
        world.observe(Observation::Resources(resources));
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("n".into());
        namespace.metadata.uid = Some("n".into());
        namespace.metadata.deletion_timestamp = deleting.then(|| now.clone());
        namespace.spec.get_or_insert_default().finalizers = Some(vec!["kubernetes".into()]);
        world.observe(Observation::Namespace(Event::Apply(namespace)));
        for (name, going) in objects {
            let metadata = ObjectMeta {
                name: Some((*name).into()),
                namespace: Some("n".into()),
                uid: Some((*name).into()),
                deletion_timestamp: going.then(|| now.clone()),
                ..ObjectMeta::default()
            };
            let meta = PartialObjectMeta {
                types: None,
                metadata,
                _phantom: PhantomData,
            };
            world.observe(Observation::Other(maps.clone(), Event::Apply(meta)));
        }
        world
    }

    fn plan(world: &World) -> Vec<Op> {
        let context = Context::at(jiff::Timestamp::UNIX_EPOCH);
        Namespaces
            .plan(world, &Key::cluster("n"), &context)
            .actions
            .into_iter()
            .map(|a| a.op)
            .collect()
    }

    #[test]
    fn deletes_waits_and_finalizes() {
        assert!(plan(&world(false, &[("a", false)])).is_empty());
        assert_eq!(plan(&world(true, &[("a", false), ("b", true)])), [Op::DeleteAll]);
        assert!(plan(&world(true, &[("a", true)])).is_empty());
        let last = plan(&world(true, &[]));
        let [Op::Finalize(resources)] = last.as_slice() else {
            panic!("{last:?}")
        };
        assert!(
            resources.iter().any(|r| r.plural == "configmaps")
                && resources.iter().any(|r| r.plural == "events")
        );
        assert!(!resources.iter().any(|r| r.plural == "namespaces"));
    }
}
