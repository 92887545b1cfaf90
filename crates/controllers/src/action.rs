//! What a controller wants done, as data.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::resource::{Key, Meta, Resource, Scoped};
use crate::store::Stored;

/// The object that an action is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its resource.
    pub resource: Resource,
    /// Its namespace and name; the name may be empty for one to be created.
    pub key: Key,
    /// Its unique id, where it is known: a namesake is not meant.
    pub uid: Option<String>,
}

impl Target {
    /// The object itself.
    pub fn of<K>(object: &K) -> Target
    where
        K: Stored + kube::Resource<DynamicType = ()>,
        K::Scope: Scoped,
    {
        Target {
            resource: Resource::of::<K>(),
            key: Key::of(object.head()),
            uid: object.head().uid.clone(),
        }
    }

    /// The object that this metadata belongs to.
    pub fn meta(meta: &Meta) -> Target {
        Target {
            resource: (*meta.resource).clone(),
            key: Key::of(&meta.metadata),
            uid: meta.metadata.uid.clone(),
        }
    }

    /// Its namespace, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        Some(self.key.namespace.as_str()).filter(|n| !n.is_empty())
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.resource, self.key)
    }
}

/// What becomes of an object's dependents when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted after it.
    Background,
    /// They are deleted before it.
    Foreground,
    /// They stay.
    Orphan,
}

/// The part of an object that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but its status.
    Main,
    /// Its status.
    Status,
}

/// What to do with the target.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create this object.
    Create(Value),
    /// Apply this JSON merge patch (RFC 7396).
    Patch(Part, Value),
    /// Delete it.
    Delete {
        /// What becomes of its dependents; the server's default if none.
        propagation: Option<Propagation>,
        /// Seconds that it gets to end; its own if none.
        grace: Option<u32>,
        /// Only if it is still of this version.
        version: Option<String>,
    },
    /// Delete all objects of its resource in its namespace.
    DeleteAll,
    /// Bind the pod to this node.
    Bind(String),
    /// Delete what is left in the namespace, and when nothing is, take Kubernetes' finalizer from it.
    Finalize(Vec<Resource>),
    /// Only tell the event.
    Tell,
}

/// What must be true on the server, not just in the view, for an action to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Guard {
    /// The target, with this unique id if it has one, does not exist.
    Absent(Target),
    /// The target exists and is not being deleted.
    Alive(Target),
}

/// An event to tell people, once the action is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The object it is about.
    pub about: ObjectReference,
    /// Whether it is a warning.
    pub warning: bool,
    /// Reason in upper camel case.
    pub reason: &'static str,
    /// Text; `{name}` stands for the name of the object that the action made.
    pub message: String,
}

impl Note {
    /// Something that went well with `object`.
    pub fn normal<K>(object: &K, reason: &'static str, message: impl Into<String>) -> Note
    where
        K: Stored + kube::Resource<DynamicType = ()>,
    {
        Note {
            about: reference(object),
            warning: false,
            reason,
            message: message.into(),
        }
    }

    /// Something that is wrong with `object`.
    pub fn warning<K>(object: &K, reason: &'static str, message: impl Into<String>) -> Note
    where
        K: Stored + kube::Resource<DynamicType = ()>,
    {
        Note {
            warning: true,
            ..Note::normal(object, reason, message)
        }
    }
}

fn reference<K: Stored + kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.head();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// One request to the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// What it is about.
    pub target: Target,
    /// What to do with it.
    pub op: Op,
    /// What must be true for it.
    pub guards: Vec<Guard>,
    /// What to tell about it.
    pub note: Option<Note>,
}

impl Action {
    /// Does `op` to `target`.
    pub fn new(target: Target, op: Op) -> Action {
        Action {
            target,
            op,
            guards: Vec::new(),
            note: None,
        }
    }

    /// Creates `object`.
    pub fn create<K>(object: &K) -> Action
    where
        K: Stored + kube::Resource<DynamicType = ()> + serde::Serialize,
        K::Scope: Scoped,
    {
        let mut body = value(object);
        // k8s-openapi writes optional status structs that we never fill; the server ignores status on creation.
        if let Some(body) = body.as_object_mut() {
            body.remove("status");
        }
        Action::new(Target::of(object), Op::Create(body))
    }

    /// Deletes `object`, and no namesake of it.
    pub fn delete<K>(object: &K) -> Action
    where
        K: Stored + kube::Resource<DynamicType = ()>,
        K::Scope: Scoped,
    {
        let op = Op::Delete {
            propagation: Some(Propagation::Background),
            grace: None,
            version: None,
        };
        Action::new(Target::of(object), op)
    }

    /// Makes of `old` what is in `new`, as a merge patch of what differs; none if nothing does.
    pub fn modify<K>(part: Part, old: &K, new: &K) -> Option<Action>
    where
        K: Stored + kube::Resource<DynamicType = ()> + serde::Serialize,
        K::Scope: Scoped,
    {
        let patch = merge_patch(&value(old), &value(new))?;
        Some(Action::new(Target::of(old), Op::Patch(part, patch)))
    }

    /// Like [`Action::modify`], but only if the object is still of the version that `old` is. For lists that
    /// others write too.
    pub fn modify_exactly<K>(part: Part, old: &K, new: &K) -> Option<Action>
    where
        K: Stored + kube::Resource<DynamicType = ()> + serde::Serialize,
        K::Scope: Scoped,
    {
        let mut action = Action::modify(part, old, new)?;
        if let Op::Patch(_, patch) = &mut action.op {
            patch["metadata"]["resourceVersion"] = json!(old.head().resource_version);
        }
        Some(action)
    }

    /// With an event to tell.
    pub fn telling(mut self, note: Note) -> Action {
        self.note = Some(note);
        self
    }

    /// Only when `guard` holds.
    pub fn guarded(mut self, guard: Guard) -> Action {
        self.guards.push(guard);
        self
    }
}

fn value<K: serde::Serialize>(object: &K) -> Value {
    // Types of k8s-openapi have string keys and no failing serializer.
    serde_json::to_value(object).unwrap_or_default()
}

/// The JSON merge patch (RFC 7396) that makes `new` of `old`; none if they are equal.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, new) in new {
        let change = match old.get(key) {
            Some(old) => merge_patch(old, new),
            None => Some(new.clone()),
        };
        patch.extend(change.map(|change| (key.clone(), change)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// A reference by which `owner` owns and controls.
pub fn controller_reference<K>(owner: &K) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference
where
    K: Stored + kube::Resource<DynamicType = ()>,
{
    let meta: &ObjectMeta = owner.head();
    k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
