//! Adoption and release: which objects belong to a controller that selects by labels.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::action::{Action, Guard, Part, Target, controller_reference};
use crate::pod::controller;
use crate::resource::Scoped;
use crate::selector::selects;
use crate::store::Stored;

/// The outcome of claiming.
#[derive(Debug)]
pub struct Claim<K> {
    /// What belongs to the owner, including what is being adopted.
    pub mine: Vec<Arc<K>>,
    /// The adoptions and releases.
    pub actions: Vec<Action>,
}

/// Sorts `candidates` into what is `owner`'s and what is not: what it controls and selects stays its own, what it
/// controls and no longer selects is released, what nobody controls and it selects is adopted.
pub fn claim<'a, O, K>(
    owner: &O,
    selector: &LabelSelector,
    candidates: impl Iterator<Item = &'a Arc<K>>,
) -> Claim<K>
where
    O: Stored + kube::Resource<DynamicType = ()>,
    O::Scope: Scoped,
    K: Stored + kube::Resource<DynamicType = ()> + Clone + serde::Serialize + 'static,
    K::Scope: Scoped,
{
    let mut claim = Claim {
        mine: Vec::new(),
        actions: Vec::new(),
    };
    let going = owner.head().deletion_timestamp.is_some();
    for candidate in candidates {
        let meta = candidate.head();
        let selected = selects(selector, meta.labels.as_ref());
        match controller(meta) {
            Some(other) if Some(&other.uid) != owner.head().uid.as_ref() => {}
            Some(_) if selected => claim.mine.push(candidate.clone()),
            Some(_) if going || meta.deletion_timestamp.is_some() => {}
            Some(_) => claim.actions.extend(release(owner, &**candidate)),
            None if selected && !going && meta.deletion_timestamp.is_none() => {
                claim.actions.extend(adopt(owner, &**candidate));
                claim.mine.push(candidate.clone());
            }
            None => {}
        }
    }
    claim
}

/// An owner that was deleted with its dependents left behind must not take them back from a stale view, or they
/// would be collected as its own. So the server is asked whether it lives.
fn adopt<O, K>(owner: &O, object: &K) -> Option<Action>
where
    O: Stored + kube::Resource<DynamicType = ()>,
    O::Scope: Scoped,
    K: Stored + kube::Resource<DynamicType = ()> + Clone + serde::Serialize,
    K::Scope: Scoped,
{
    let mut adopted = object.clone();
    kube::Resource::meta_mut(&mut adopted)
        .owner_references
        .get_or_insert_default()
        .push(controller_reference(owner));
    let action = Action::modify_exactly(Part::Main, object, &adopted)?;
    Some(action.guarded(Guard::Alive(Target::of(owner))))
}

fn release<O, K>(owner: &O, object: &K) -> Option<Action>
where
    O: Stored,
    K: Stored + kube::Resource<DynamicType = ()> + Clone + serde::Serialize,
    K::Scope: Scoped,
{
    let mut released = object.clone();
    let owners = kube::Resource::meta_mut(&mut released)
        .owner_references
        .get_or_insert_default();
    owners.retain(|reference| Some(&reference.uid) != owner.head().uid.as_ref());
    Action::modify_exactly(Part::Main, object, &released)
}
