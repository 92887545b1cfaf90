//! The scale subresource: `autoscaling/v1` Scale as a view of any kind that has replicas.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::metadata::text;
use super::update::{Part, refuse_patch};
use super::{Answer, Api, Object, Target, WriteOptions};
use crate::kinds::{FieldError, Resource, Scale};
use crate::patch::{Patch, PatchError, merge};
use crate::status::Refusal;

impl Api {
    /// GET of `scale`.
    pub async fn get_scale(&self, target: &Target) -> Result<Answer, Refusal> {
        let paths = paths(&target.resource)?;
        let answer = self.get(target).await?;
        Ok(Answer::ok(Object::Made(view(&paths, answer.object.value()))))
    }

    /// PUT of `scale`.
    pub async fn replace_scale(
        self: &Arc<Self>,
        target: &Target,
        scale: &Value,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let name = text(scale, "name");
        if name != target.name {
            let message = format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            );
            return Err(Refusal::bad_request(message));
        }
        self.write_scale(target, options, &|_| Ok(scale.clone())).await
    }

    /// PATCH of `scale`.
    pub async fn patch_scale(
        self: &Arc<Self>,
        target: &Target,
        patch: &Patch,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let edit = |scale: &Value| match patch {
            Patch::Json(operations) => {
                let mut scale = scale.clone();
                json_patch::patch(&mut scale, operations)
                    .map_err(|error| refuse_patch(PatchError::Unfit(error.to_string())))?;
                Ok(scale)
            }
            // A Scale has no lists, so both kinds of merge are one.
            Patch::Merge(patch) | Patch::Strategic(patch) => Ok(merge(scale.clone(), patch)),
        };
        self.write_scale(target, options, &edit).await
    }

    async fn write_scale(
        self: &Arc<Self>,
        target: &Target,
        options: WriteOptions,
        edit: &(dyn Fn(&Value) -> Result<Value, Refusal> + Send + Sync),
    ) -> Result<Answer, Refusal> {
        let paths = paths(&target.resource)?;
        let change = |current: &Value| {
            let scale = edit(&view(&paths, current))?;
            let replicas = replicas(&scale, target)?;
            let mut new = current.clone();
            set(&mut new, &paths.spec_replicas, replicas.into());
            let (uid, version) = (text(&scale, "uid"), text(&scale, "resourceVersion"));
            if !uid.is_empty() {
                new["metadata"]["uid"] = uid.into();
            }
            if !version.is_empty() {
                new["metadata"]["resourceVersion"] = version.into();
            }
            Ok(new)
        };
        let answer = self.change(target, Part::Whole, options, &change).await?;
        Ok(Answer::ok(Object::Made(view(&paths, answer.object.value()))))
    }
}

fn paths(resource: &Resource) -> Result<Scale, Refusal> {
    resource.scale().ok_or_else(Refusal::no_such_resource)
}

fn replicas(scale: &Value, target: &Target) -> Result<i64, Refusal> {
    let wanted = match &scale["spec"]["replicas"] {
        Value::Null => Some(0),
        value => value.as_i64(),
    };
    match wanted {
        Some(wanted) if wanted >= 0 => Ok(wanted),
        Some(wanted) => {
            let error = FieldError::invalid("spec.replicas", wanted, "must be greater than or equal to 0");
            let status = crate::kinds::invalid_status("autoscaling", "Scale", &target.name, &[error]);
            Err(Refusal { status })
        }
        None => Err(Refusal::bad_request(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal value into Go struct field \
             ScaleSpec.spec.replicas of type int32",
        )),
    }
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .filter(|part| !part.is_empty())
        .fold(object, |value, part| &value[part])
}

fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[part];
    }
    *place = value;
}

fn view(paths: &Scale, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let number = |path: &str| at(object, path).as_i64().unwrap_or_default();
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {"name": metadata["name"]},
        "spec": {"replicas": number(&paths.spec_replicas)},
        "status": {"replicas": number(&paths.status_replicas)},
    });
    for field in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[field].is_null() {
            scale["metadata"][field] = metadata[field].clone();
        }
    }
    if let Some(path) = &paths.selector {
        let selector = selector_text(at(object, path));
        if !selector.is_empty() {
            scale["status"]["selector"] = selector.into();
        }
    }
    scale
}

/// A label selector in its string form.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<String> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_text() {
        let selector = json!({"matchLabels": {"b": "c", "a": "b"}, "matchExpressions": [{"key": "x", "operator": "In", "values": ["1", "2"]}]});
        assert_eq!(selector_text(&selector), "a=b,b=c,x in (1,2)");
        assert_eq!(selector_text(&json!("a=b")), "a=b");
    }
}
