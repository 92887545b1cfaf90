//! An API server small enough to be stopped between any two of its steps: watches that lag behind as the test likes,
//! answers that come in any order, and nodes that run pods.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::watcher::Event;
use podnet_controllers::action::{Action, Guard, Op, Part, Propagation, Target};
use podnet_controllers::engine::{Answer, Engine, Job, Refusal};
use podnet_controllers::world::Observation;
use serde_json::{Value, json};

type Id = (String, String, String);

/// The server and the nodes.
pub(crate) struct Simulated {
    objects: BTreeMap<Id, Value>,
    /// News per kind that the watch has not delivered yet.
    news: BTreeMap<String, VecDeque<(bool, Value)>>,
    version: u64,
    pub(crate) now: Timestamp,
    /// Every creation so far, by kind.
    pub(crate) created: BTreeMap<String, usize>,
    /// Most pods that counted at once.
    pub(crate) most_active: usize,
    /// Most pods that all ReplicaSets together were to have.
    pub(crate) most_wanted: u64,
    /// Fewest ready pods since [`Simulated::watch_readiness`].
    pub(crate) least_ready: Option<usize>,
    pub(crate) refusals: Vec<String>,
    jobs: Vec<Job>,
    answers: Vec<(u64, Result<Answer, Refusal>)>,
}

fn id(target: &Target) -> Id {
    (
        target.resource.kind.clone(),
        target.key.namespace.clone(),
        target.key.name.clone(),
    )
}

fn id_of(object: &Value) -> Id {
    let text = |path: &str| {
        object
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

fn merge(base: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut base[key.as_str()], value);
        }
    }
}

fn stale(message: &str) -> Refusal {
    Refusal {
        stale: true,
        message: message.into(),
    }
}

fn finalizers(object: &Value) -> usize {
    object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
}

impl Simulated {
    pub(crate) fn new() -> Simulated {
        Simulated {
            objects: BTreeMap::new(),
            news: BTreeMap::new(),
            version: 100,
            now: Timestamp::from_second(1_750_000_000).unwrap(),
            created: BTreeMap::new(),
            most_active: 0,
            most_wanted: 0,
            least_ready: None,
            refusals: Vec::new(),
            jobs: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Tells the engine that every list is complete and empty, and which resources there are.
    pub(crate) fn start(&self, engine: &mut Engine) {
        macro_rules! listed {
            ($($kind:ident),*) => {
                $(engine.observe(Observation::$kind(Event::Init));
                  engine.observe(Observation::$kind(Event::InitDone));)*
            };
        }
        listed!(
            Pod,
            Node,
            Namespace,
            Service,
            Endpoints,
            EndpointSlice,
            ReplicaSet,
            Deployment,
            Lease
        );
        let watched = engine.world().watched().iter();
        let resources = watched.filter_map(|kind| kind.resource()).map(Arc::new).collect();
        engine.observe(Observation::Resources(resources));
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind.into(), namespace.into(), name.into()))
    }

    pub(crate) fn list(&self, kind: &str) -> Vec<&Value> {
        self.objects
            .iter()
            .filter(|((k, _, _), _)| k == kind)
            .map(|(_, object)| object)
            .collect()
    }

    /// What a person does with kubectl.
    pub(crate) fn apply(&mut self, object: Value) {
        let id = id_of(&object);
        match self.objects.get(&id) {
            None => drop(self.create(object)),
            Some(old) => {
                let mut new = old.clone();
                merge(&mut new, &object);
                self.store(id, new, true);
            }
        }
    }

    pub(crate) fn person_deletes(
        &mut self,
        kind: &str,
        namespace: &str,
        name: &str,
        propagation: Propagation,
    ) {
        let id = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.delete(&id, Some(propagation), None);
    }

    fn emit(&mut self, deleted: bool, object: &Value) {
        let kind = object["kind"].as_str().unwrap().to_owned();
        self.news
            .entry(kind)
            .or_default()
            .push_back((deleted, object.clone()));
        let wanted = self
            .list("ReplicaSet")
            .iter()
            .filter_map(|set| set["spec"]["replicas"].as_u64())
            .sum();
        self.most_wanted = self.most_wanted.max(wanted);
        let pods = self.list("Pod");
        let active = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let (active, ready) = active.fold((0, 0), |(active, ready), pod| {
            let is_ready = pod["status"]["conditions"][0]["status"] == "True";
            (active + 1, ready + usize::from(is_ready))
        });
        self.most_active = self.most_active.max(active);
        self.least_ready = self.least_ready.map(|least| least.min(ready));
    }

    pub(crate) fn watch_readiness(&mut self) {
        self.least_ready = Some(usize::MAX);
        self.most_active = 0;
        self.most_wanted = 0;
    }

    fn create(&mut self, mut object: Value) -> Result<Answer, Refusal> {
        self.version += 1;
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap().to_owned();
            object["metadata"]["name"] = json!(format!("{prefix}{:05}", self.version));
        }
        let id = id_of(&object);
        if self.objects.contains_key(&id) {
            return Err(stale("already exists"));
        }
        *self.created.entry(id.0.clone()).or_default() += 1;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("uid-{}", self.version));
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(self.now.to_string());
        if id.0 == "Pod" {
            object["status"] = json!({"phase": "Pending"});
        }
        self.objects.insert(id, object.clone());
        self.emit(false, &object);
        Ok(Answer::Object(object))
    }

    /// Stores a new state of an object that is there, or removes it if nothing holds it any more.
    fn store(&mut self, id: Id, mut object: Value, spec: bool) -> Value {
        let old = &self.objects[&id];
        let settled = |object: &Value| {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"].take();
            object
        };
        if settled(old) == settled(&object) {
            return old.clone();
        }
        self.version += 1;
        if spec && old["spec"] != object["spec"] {
            object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let going = !object["metadata"]["deletionTimestamp"].is_null();
        let waits = object["metadata"]["deletionGracePeriodSeconds"]
            .as_u64()
            .unwrap_or(0)
            > 0;
        if going && finalizers(&object) == 0 && !waits {
            self.objects.remove(&id);
            self.emit(true, &object);
        } else {
            self.objects.insert(id, object.clone());
            self.emit(false, &object);
        }
        object
    }

    fn delete(&mut self, id: &Id, propagation: Option<Propagation>, grace: Option<u32>) -> Answer {
        let Some(old) = self.objects.get(id) else {
            return Answer::Gone;
        };
        let mut object = old.clone();
        let finalizer = match propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        let mut held: Vec<Value> = object["metadata"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        held.extend(finalizer.filter(|f| !held.contains(&json!(f))).map(|f| json!(f)));
        if !held.is_empty() {
            object["metadata"]["finalizers"] = json!(held);
        }
        let running = id.0 == "Pod" && !object["spec"]["nodeName"].is_null();
        let grace = if running { grace.unwrap_or(30) } else { 0 };
        object["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let left = self.store(id.clone(), object, false);
        if self.objects.contains_key(id) {
            Answer::Object(left)
        } else {
            Answer::Gone
        }
    }

    fn holds(&self, guard: &Guard) -> bool {
        let (Guard::Absent(target) | Guard::Alive(target)) = guard;
        let found = self.objects.get(&id(target));
        let found =
            found.filter(|o| target.uid.is_none() || o["metadata"]["uid"].as_str() == target.uid.as_deref());
        match guard {
            Guard::Absent(_) => found.is_none(),
            Guard::Alive(_) => found.is_some_and(|o| o["metadata"]["deletionTimestamp"].is_null()),
        }
    }

    fn execute(&mut self, action: Action) -> Result<Answer, Refusal> {
        if !action.guards.iter().all(|guard| self.holds(guard)) {
            return Err(stale("guard"));
        }
        let id = id(&action.target);
        if let Op::Create(body) = action.op {
            return self.create(body);
        }
        if let Op::Tell | Op::DeleteAll | Op::Finalize(_) = &action.op {
            return Ok(Answer::Done);
        }
        let old = self.objects.get(&id).cloned().ok_or_else(|| stale("not found"))?;
        match action.op {
            Op::Patch(part, body) => {
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
                    return Err(stale("conflict"));
                }
                let mut new = old.clone();
                merge(&mut new, &body);
                match part {
                    Part::Main => new["status"] = old["status"].clone(),
                    Part::Status => new["spec"] = old["spec"].clone(),
                }
                Ok(Answer::Object(self.store(id, new, part == Part::Main)))
            }
            Op::Delete {
                propagation,
                grace,
                version,
            } => {
                let other =
                    version.is_some_and(|v| Some(v.as_str()) != old["metadata"]["resourceVersion"].as_str());
                if other || action.target.uid.as_deref() != old["metadata"]["uid"].as_str() {
                    return Err(stale("precondition"));
                }
                Ok(self.delete(&id, propagation, grace))
            }
            Op::Bind(node) => {
                if !old["spec"]["nodeName"].is_null() {
                    return Err(stale("already bound"));
                }
                let mut new = old;
                new["spec"]["nodeName"] = json!(node);
                self.store(id, new, false);
                Ok(Answer::Done)
            }
            Op::Create(_) | Op::Tell | Op::DeleteAll | Op::Finalize(_) => unreachable!(),
        }
    }

    /// Delivers the oldest news of the `choice`th kind that has any.
    fn deliver(&mut self, engine: &mut Engine, choice: usize) -> bool {
        let waiting: Vec<String> = self
            .news
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(kind, _)| kind.clone())
            .collect();
        if waiting.is_empty() {
            return false;
        }
        let kind = &waiting[choice % waiting.len()];
        let (deleted, object) = self.news.get_mut(kind).unwrap().pop_front().unwrap();
        macro_rules! observation {
            ($($kind:ident),*) => {
                match kind.as_str() {
                    $(stringify!($kind) => {
                        let object = serde_json::from_value(object).unwrap();
                        Observation::$kind(if deleted { Event::Delete(object) } else { Event::Apply(object) })
                    })*
                    other => panic!("no kind {other}"),
                }
            };
        }
        engine.observe(observation!(
            Pod,
            Node,
            Namespace,
            Service,
            Endpoints,
            EndpointSlice,
            ReplicaSet,
            Deployment,
            Lease
        ));
        true
    }

    /// One node does one thing: starts a pod or ends one.
    fn node_acts(&mut self, choice: usize) -> bool {
        let todo: Vec<Id> = self
            .objects
            .iter()
            .filter(|((kind, _, _), pod)| {
                let bound = kind == "Pod" && !pod["spec"]["nodeName"].is_null();
                let ending = !pod["metadata"]["deletionTimestamp"].is_null();
                let started = pod["status"]["phase"] == "Running";
                bound && (ending || !started)
            })
            .map(|(id, _)| id.clone())
            .collect();
        if todo.is_empty() {
            return false;
        }
        let id = todo[choice % todo.len()].clone();
        let mut pod = self.objects[&id].clone();
        if pod["metadata"]["deletionTimestamp"].is_null() {
            let ip = format!("10.244.{}.{}", self.version / 250 % 250, self.version % 250);
            pod["status"] = json!({
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": self.now.to_string()}],
                "podIP": ip, "podIPs": [{"ip": ip}],
            });
        } else {
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        }
        self.store(id, pod, false);
        true
    }

    /// Runs everything in the order that `choices` picks, until nothing moves any more. Choices repeat.
    pub(crate) fn settle(&mut self, engine: &mut Engine, choices: &[u8]) {
        assert!(self.run(engine, choices, 200_000), "does not settle");
    }

    /// As [`Simulated::settle`], but for at most so many steps; whether it settled.
    pub(crate) fn run(&mut self, engine: &mut Engine, choices: &[u8], steps: usize) -> bool {
        let mut choices = choices.iter().cycle().map(|c| usize::from(*c));
        let mut choose = move || choices.next().unwrap_or(0);
        for _ in 0..steps {
            let jobs = engine.work(self.now);
            self.jobs.extend(jobs);
            // Start somewhere, and take the first that has anything to do.
            let first = choose();
            let moved = (0..4).any(|offset| self.step(engine, (first + offset) % 4, choose()));
            if !moved {
                match engine.next_alarm() {
                    Some(alarm) if alarm < self.now + SignedDuration::from_secs(20) => {
                        self.now = self.now.max(alarm);
                    }
                    _ => return true,
                }
            }
        }
        false
    }

    fn step(&mut self, engine: &mut Engine, what: usize, choice: usize) -> bool {
        match what {
            0 if !self.jobs.is_empty() => {
                let Job { ticket, action, .. } = self.jobs.swap_remove(choice % self.jobs.len());
                let outcome = self.execute(action);
                if let Err(refusal) = &outcome {
                    self.refusals.push(refusal.message.clone());
                }
                self.answers.push((ticket, outcome));
                true
            }
            1 if !self.answers.is_empty() => {
                let (ticket, outcome) = self.answers.swap_remove(choice % self.answers.len());
                engine.finished(ticket, outcome, self.now);
                true
            }
            2 => self.deliver(engine, choice),
            3 => self.node_acts(choice),
            _ => false,
        }
    }
}

pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

pub(crate) fn deployment(name: &str, replicas: usize, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "d"},
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "d"},
        "spec": {
            "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"], "selector": {"app": name},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
        },
    })
}
