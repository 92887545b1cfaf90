//! Reading an object as its type, as Go's decoder in Kubernetes does: types are checked, unknown fields are dropped
//! and told, null is the same as absent, empty lists and maps vanish, quantities and times get their canonical form.

use base64::Engine as _;
use jiff::Timestamp;
use podnet_core::quantity::Quantity;
use serde_json::{Map, Value};

use super::super::{DecodeError, error::quote};
use super::{DEFINITIONS, reference, short_name};

/// Reads `object` as the definition `root`; returns what was dropped.
pub(in super::super) fn decode(root: &str, object: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut reader = Reader {
        owner: short_name(root).to_owned(),
        fields: Vec::new(),
        unknown: Vec::new(),
    };
    reader.definition(root, object, "")?;
    Ok(reader.unknown)
}

/// Reads the parts of a custom object that every object has; returns what was dropped.
pub(in super::super) fn decode_metadata(object: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut reader = Reader {
        owner: "Object".to_owned(),
        fields: vec!["metadata".into()],
        unknown: Vec::new(),
    };
    match object.get_mut("metadata") {
        None => {}
        Some(Value::Null) => object["metadata"] = Value::Object(Map::new()),
        Some(metadata) => reader.definition(OBJECT_META, metadata, "metadata")?,
    }
    Ok(reader.unknown)
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

struct Reader {
    /// The Go struct that holds the field being read.
    owner: String,
    /// Names of the fields from the root, as Go's error has them (without indices).
    fields: Vec<String>,
    unknown: Vec<String>,
}

impl Reader {
    fn definition(&mut self, name: &str, value: &mut Value, path: &str) -> Result<(), DecodeError> {
        match short_name(name) {
            "Quantity" => return self.quantity(value),
            "IntOrString" => return self.int_or_string(value),
            "Time" => return self.time(value, false),
            "MicroTime" => return self.time(value, true),
            "JSON" | "FieldsV1" | "RawExtension" => return Ok(()),
            "JSONSchemaPropsOrBool" if value.is_boolean() => return Ok(()),
            "JSONSchemaPropsOrStringArray" if value.is_array() => return Ok(()),
            "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => {
                return self.json_schema(name, value, path);
            }
            _ => {}
        }
        let Some(schema) = DEFINITIONS.get(name) else {
            return Ok(());
        };
        let Value::Object(fields) = value else {
            return Err(self.mismatch(value, &format!("v1.{}", short_name(name))));
        };
        let owner = std::mem::replace(&mut self.owner, short_name(name).to_owned());
        self.structure(schema, fields, path)?;
        self.owner = owner;
        Ok(())
    }

    /// A schema where Go has a union of a schema and something else.
    fn json_schema(&mut self, name: &str, value: &mut Value, path: &str) -> Result<(), DecodeError> {
        let props = name.replace("JSONSchemaPropsOrBool", "JSONSchemaProps");
        let props = props.replace("JSONSchemaPropsOrStringArray", "JSONSchemaProps");
        let props = props.replace("JSONSchemaPropsOrArray", "JSONSchemaProps");
        match value {
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.definition(&props, item, &format!("{path}[{i}]"))?;
                }
                Ok(())
            }
            other => self.definition(&props, other, path),
        }
    }

    fn structure(
        &mut self,
        schema: &Value,
        fields: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), DecodeError> {
        let nothing = Map::new();
        let properties = schema
            .get("properties")
            .and_then(Value::as_object)
            .unwrap_or(&nothing);
        let mut dropped = Vec::new();
        for (name, value) in fields.iter_mut() {
            let here = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let Some(property) = properties.get(name) else {
                self.unknown.push(format!("unknown field {}", quote(&here)));
                dropped.push(name.clone());
                continue;
            };
            if value.is_null() {
                dropped.push(name.clone());
                continue;
            }
            self.fields.push(name.clone());
            self.value(property, value, &here)?;
            self.fields.pop();
            if vanishes(property, value) && !is_required(schema, name) {
                dropped.push(name.clone());
            }
        }
        for name in dropped {
            fields.shift_remove(&name);
        }
        Ok(())
    }

    fn value(&mut self, schema: &Value, value: &mut Value, path: &str) -> Result<(), DecodeError> {
        if let Some(name) = reference(schema) {
            return self.definition(name, value, path);
        }
        let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
        match schema.get("type").and_then(Value::as_str).unwrap_or_default() {
            "string" if format == "byte" => self.base64(value),
            "string" if value.is_string() => Ok(()),
            "string" => Err(self.mismatch(value, "string")),
            "boolean" if value.is_boolean() => Ok(()),
            "boolean" => Err(self.mismatch(value, "bool")),
            "integer" => self.integer(value, if format.is_empty() { "int64" } else { format }),
            "number" if value.is_number() => Ok(()),
            "number" => Err(self.mismatch(value, "float64")),
            "array" => self.list(&schema["items"], value, path),
            "object" => match schema.get("additionalProperties") {
                Some(each) => self.map(each, value, path),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn list(&mut self, schema: &Value, value: &mut Value, path: &str) -> Result<(), DecodeError> {
        let Value::Array(items) = value else {
            return Err(self.mismatch(value, &format!("[]{}", go_type(schema))));
        };
        for (i, item) in items.iter_mut().enumerate() {
            if item.is_null() {
                *item = zero(schema);
            }
            self.value(schema, item, &format!("{path}[{i}]"))?;
        }
        Ok(())
    }

    fn map(&mut self, schema: &Value, value: &mut Value, path: &str) -> Result<(), DecodeError> {
        let Value::Object(entries) = value else {
            return Err(self.mismatch(value, &format!("map[string]{}", go_type(schema))));
        };
        for (key, item) in entries.iter_mut() {
            if item.is_null() {
                *item = zero(schema);
            }
            self.value(schema, item, &format!("{path}.{key}"))?;
        }
        Ok(())
    }

    fn integer(&mut self, value: &Value, format: &str) -> Result<(), DecodeError> {
        let fits = match (value.as_i64(), format) {
            (Some(n), "int32") => i32::try_from(n).is_ok(),
            (Some(_), _) => true,
            (None, _) => false,
        };
        if fits {
            Ok(())
        } else {
            Err(self.mismatch(value, format))
        }
    }

    fn int_or_string(&mut self, value: &Value) -> Result<(), DecodeError> {
        match value {
            Value::String(_) => Ok(()),
            Value::Number(_) => self.integer(value, "int32"),
            other => Err(self.error(format!(
                "json: cannot unmarshal {} into Go value of type string",
                json_type(other)
            ))),
        }
    }

    fn quantity(&mut self, value: &mut Value) -> Result<(), DecodeError> {
        let text = match value {
            Value::String(s) => s.clone(),
            Value::Number(n) => n.to_string(),
            other => return Err(self.mismatch(other, "resource.Quantity")),
        };
        match text.parse::<Quantity>() {
            Ok(quantity) => {
                *value = quantity.to_string().into();
                Ok(())
            }
            Err(error) => Err(self.error(error.to_string())),
        }
    }

    fn time(&mut self, value: &mut Value, micro: bool) -> Result<(), DecodeError> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, "string"));
        };
        match text.parse::<Timestamp>() {
            Ok(time) if micro => *value = time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into(),
            Ok(time) => *value = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
            Err(_) => {
                let layout = if micro {
                    "2006-01-02T15:04:05.000000Z07:00"
                } else {
                    "2006-01-02T15:04:05Z07:00"
                };
                return Err(self.error(format!(
                    "parsing time {} as {}: cannot parse {} as \"2006\"",
                    quote(&quote(text)),
                    quote(&quote(layout)),
                    quote(&format!("{text}\"")),
                )));
            }
        }
        Ok(())
    }

    fn base64(&mut self, value: &Value) -> Result<(), DecodeError> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, "[]uint8"));
        };
        // Go's decoder skips line ends.
        let packed: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        match base64::engine::general_purpose::STANDARD.decode(&packed) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
                Err(self.error(format!("illegal base64 data at input byte {at}")))
            }
            Err(_) => Err(self.error(format!(
                "illegal base64 data at input byte {}",
                packed.len() / 4 * 4
            ))),
        }
    }

    fn mismatch(&self, value: &Value, go_type: &str) -> DecodeError {
        let what = match value {
            Value::Number(n) if go_type.starts_with("int") => format!("number {n}"),
            other => json_type(other).to_owned(),
        };
        if self.fields.is_empty() {
            return self.error(format!(
                "json: cannot unmarshal {what} into Go value of type {go_type}"
            ));
        }
        let path = self.fields.join(".");
        self.error(format!(
            "json: cannot unmarshal {what} into Go struct field {}.{path} of type {go_type}",
            self.owner
        ))
    }

    fn error(&self, message: String) -> DecodeError {
        DecodeError {
            path: self.fields.join("."),
            message,
        }
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema
        .get("required")
        .and_then(Value::as_array)
        .is_some_and(|all| all.iter().any(|field| field == name))
}

/// Go leaves out empty lists and maps (`omitempty`), but not empty structs.
fn vanishes(schema: &Value, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty() && schema.get("items").is_some(),
        Value::Object(entries) => entries.is_empty() && schema.get("additionalProperties").is_some(),
        _ => false,
    }
}

/// Go's zero value of a list's or map's item.
fn zero(schema: &Value) -> Value {
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => "".into(),
        Some("integer" | "number") => 0.into(),
        Some("boolean") => false.into(),
        Some("array") => Value::Array(Vec::new()),
        _ => match reference(schema).map(short_name) {
            Some("Quantity") => "0".into(),
            Some("JSON") => Value::Null,
            _ => Value::Object(Map::new()),
        },
    }
}

fn go_type(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return format!("v1.{}", short_name(name));
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("integer") => schema
            .get("format")
            .and_then(Value::as_str)
            .unwrap_or("int64")
            .to_owned(),
        Some("number") => "float64".to_owned(),
        Some("boolean") => "bool".to_owned(),
        Some("array") => format!("[]{}", go_type(&schema["items"])),
        _ => "string".to_owned(),
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn type_errors_are_told_as_go_does() {
        let cases = [
            (
                DEPLOYMENT,
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                DEPLOYMENT,
                json!({"spec": {"template": {"spec": {"containers": [{"image": 5}]}}}}),
                "json: cannot unmarshal number into Go struct field \
                 Container.spec.template.spec.containers.image of type string",
            ),
            (
                POD,
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                POD,
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                POD,
                json!({"spec": []}),
                "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
            ),
            (
                "io.k8s.api.core.v1.Service",
                json!({"spec": {"ports": [{"port": 99999999999u64}]}}),
                "json: cannot unmarshal number 99999999999 into Go struct field \
                 ServicePort.spec.ports.port of type int32",
            ),
            (
                POD,
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                "io.k8s.api.core.v1.Secret",
                json!({"data": {"a": "hello!"}}),
                "illegal base64 data at input byte 5",
            ),
        ];
        for (name, mut object, want) in cases {
            assert_eq!(decode(name, &mut object).unwrap_err().message, want);
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_told() {
        let mut object =
            json!({"spec": {"foo": 1, "template": {"spec": {"containers": [{"imagee": "a"}]}}}, "x": 1});
        let unknown = decode(DEPLOYMENT, &mut object).unwrap();
        assert_eq!(
            unknown,
            [
                r#"unknown field "spec.foo""#,
                r#"unknown field "spec.template.spec.containers[0].imagee""#,
                r#"unknown field "x""#,
            ]
        );
        assert_eq!(
            object,
            json!({"spec": {"template": {"spec": {"containers": [{}]}}}})
        );
    }

    #[test]
    fn null_and_empty_vanish_and_values_become_canonical() {
        let mut object = json!({
            "metadata": {"creationTimestamp": null, "labels": {}, "annotations": {"a": null}},
            "spec": {"containers": [], "tolerations": [], "securityContext": {},
                     "overhead": {"cpu": 0.5, "memory": "1024Ki"}},
        });
        decode(POD, &mut object).unwrap();
        assert_eq!(
            object,
            json!({
                "metadata": {"annotations": {"a": ""}},
                "spec": {"containers": [], "securityContext": {}, "overhead": {"cpu": "500m", "memory": "1Mi"}},
            })
        );
    }

    #[test]
    fn custom_resource_definitions_keep_their_schemas() {
        let schema = json!({"type": "object", "properties": {"a": {"default": {"b": null}, "enum": ["x", 1],
            "additionalProperties": {"type": "string"}, "items": {"type": "integer"}, "type": "object"}}});
        let mut crd = json!({"spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Cluster",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let before = crd.clone();
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
        assert_eq!(decode(name, &mut crd).unwrap(), Vec::<String>::new());
        assert_eq!(crd, before);
    }
}
