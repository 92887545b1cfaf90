//! Carries out one action against the API server.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::action::{Action, Guard, Note, Op, Part, Propagation, Target};
use crate::engine::{Answer, Refusal};
use crate::resource::Resource;

/// Carries out `action`; events are told by a task of their own, since nothing waits for them.
pub async fn execute(client: &Client, component: &'static str, action: Action) -> Result<Answer, Refusal> {
    for guard in &action.guards {
        check(client, guard).await?;
    }
    let answer = perform(client, &action.target, action.op).await?;
    if let Some(note) = action.note {
        let name = match &answer {
            Answer::Object(object) => object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            _ => action.target.key.name.clone(),
        };
        tokio::spawn(tell(client.clone(), component, note, name));
    }
    Ok(answer)
}

async fn perform(client: &Client, target: &Target, op: Op) -> Result<Answer, Refusal> {
    let api = target.resource.api(client, target.namespace());
    let name = &target.key.name;
    match op {
        Op::Create(body) => object(api.create(&PostParams::default(), &dynamic(body)?).await),
        Op::Patch(part, body) => {
            let (params, patch) = (PatchParams::default(), Patch::Merge(body));
            object(match part {
                Part::Main => api.patch(name, &params, &patch).await,
                Part::Status => api.patch_status(name, &params, &patch).await,
            })
        }
        Op::Delete {
            propagation,
            grace,
            version,
        } => {
            let params = DeleteParams {
                grace_period_seconds: grace,
                propagation_policy: propagation.map(policy),
                preconditions: Some(Preconditions {
                    resource_version: version,
                    uid: target.uid.clone(),
                }),
                ..DeleteParams::default()
            };
            delete(&api, name, &params).await
        }
        Op::DeleteAll => {
            api.delete_collection(&DeleteParams::background(), &ListParams::default())
                .await
                .map_err(refusal)?;
            Ok(Answer::Done)
        }
        Op::Bind(node) => bind(&api, target, &node).await,
        Op::Finalize(resources) => finalize(client, name, &resources).await,
        Op::Tell => Ok(Answer::Done),
    }
}

fn dynamic(body: Value) -> Result<DynamicObject, Refusal> {
    serde_json::from_value(body).map_err(|error| Refusal {
        stale: false,
        message: error.to_string(),
    })
}

fn object(answer: kube::Result<DynamicObject>) -> Result<Answer, Refusal> {
    let value = serde_json::to_value(answer.map_err(refusal)?);
    value.map(Answer::Object).map_err(|error| Refusal {
        stale: false,
        message: error.to_string(),
    })
}

/// Not found and conflict mean that the view was behind what is; so does a namespace that has begun to go.
fn refusal(error: Error) -> Refusal {
    match &error {
        Error::Api(status) => {
            let mut causes = status.details.iter().flat_map(|details| &details.causes);
            let going = causes.any(|cause| cause.reason == "NamespaceTerminating");
            let stale = going || matches!(status.code, 404 | 409);
            Refusal {
                stale,
                message: status.message.clone(),
            }
        }
        _ => Refusal {
            stale: false,
            message: error.to_string(),
        },
    }
}

fn policy(propagation: Propagation) -> PropagationPolicy {
    match propagation {
        Propagation::Background => PropagationPolicy::Background,
        Propagation::Foreground => PropagationPolicy::Foreground,
        Propagation::Orphan => PropagationPolicy::Orphan,
    }
}

async fn delete(api: &Api<DynamicObject>, name: &str, params: &DeleteParams) -> Result<Answer, Refusal> {
    match api.delete(name, params).await {
        Err(Error::Api(status)) if status.code == 404 => Ok(Answer::Gone),
        Err(error) => Err(refusal(error)),
        Ok(answer) => match answer.left() {
            Some(left) if lingers(&left.metadata) => object(Ok(left)),
            _ => Ok(Answer::Gone),
        },
    }
}

/// Whether an object that a deletion answered is still there: it has time or a finalizer left.
fn lingers(meta: &ObjectMeta) -> bool {
    let finalizers = meta.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    meta.deletion_timestamp.is_some() && (finalizers || meta.deletion_grace_period_seconds.unwrap_or(0) > 0)
}

async fn bind(api: &Api<DynamicObject>, pod: &Target, node: &str) -> Result<Answer, Refusal> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let name = &pod.key.name;
    let _: Value = api
        .create_subresource("binding", name, &PostParams::default(), &binding)
        .await
        .map_err(refusal)?;
    Ok(Answer::Done)
}

async fn finalize(client: &Client, namespace: &str, resources: &[Resource]) -> Result<Answer, Refusal> {
    let mut left = Vec::new();
    for resource in resources {
        let api = resource.api(client, Some(namespace));
        let found = match api.list_metadata(&ListParams::default().limit(1)).await {
            Err(Error::Api(status)) if status.code == 404 => continue,
            found => found.map_err(refusal)?,
        };
        if !found.items.is_empty() {
            let params = DeleteParams::background();
            api.delete_collection(&params, &ListParams::default())
                .await
                .map_err(refusal)?;
            if !api
                .list_metadata(&ListParams::default().limit(1))
                .await
                .map_err(refusal)?
                .items
                .is_empty()
            {
                left.push(resource.to_string());
            }
        }
    }
    if !left.is_empty() {
        return Err(Refusal {
            stale: true,
            message: format!("{namespace} still has {}", left.join(", ")),
        });
    }
    let api = Resource::of::<k8s_openapi::api::core::v1::Namespace>().api(client, None);
    let mut object = match api.get(namespace).await {
        Err(Error::Api(status)) if status.code == 404 => return Ok(Answer::Gone),
        object => object.map_err(refusal)?,
    };
    if let Some(finalizers) = object.data["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| f != "kubernetes");
    }
    let params = PostParams::default();
    api.replace_subresource("finalize", namespace, &params, &object)
        .await
        .map_err(refusal)?;
    Ok(Answer::Done)
}

async fn check(client: &Client, guard: &Guard) -> Result<(), Refusal> {
    let (Guard::Absent(target) | Guard::Alive(target)) = guard;
    let api = target.resource.api(client, target.namespace());
    let found = api.get_metadata_opt(&target.key.name).await.map_err(refusal)?;
    let found = found.filter(|f| target.uid.is_none() || f.metadata.uid == target.uid);
    let holds = match guard {
        Guard::Absent(_) => found.is_none(),
        Guard::Alive(_) => found.is_some_and(|f| f.metadata.deletion_timestamp.is_none()),
    };
    let state = if matches!(guard, Guard::Absent(_)) {
        "still exists"
    } else {
        "is gone or going"
    };
    if holds {
        Ok(())
    } else {
        Err(Refusal {
            stale: true,
            message: format!("{target} {state}"),
        })
    }
}

async fn tell(client: Client, component: &'static str, note: Note, made: String) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let event = event(component, note, &made, since.as_nanos());
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client, &namespace);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::debug!(%error, "event not told");
    }
}

fn event(component: &'static str, note: Note, made: &str, nanos: u128) -> Event {
    let ObjectReference { namespace, name, .. } = &note.about;
    let now = Time(jiff::Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{nanos:x}", name.as_deref().unwrap_or_default())),
            namespace: Some(namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object: note.about,
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(note.reason.into()),
        message: Some(note.message.replace("{name}", made)),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource {
            component: Some(component.into()),
            host: None,
        }),
        reporting_component: Some(component.into()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}
