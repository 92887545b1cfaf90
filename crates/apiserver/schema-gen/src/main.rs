//! Writes the OpenAPI definitions of the kinds that the embedded API server serves, from k8s-openapi's types:
//! `cargo run --manifest-path crates/apiserver/schema-gen/Cargo.toml > crates/apiserver/src/kinds/schema/definitions.json`

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::*;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::networking::v1::{IPAddress, NetworkPolicy, ServiceCIDR};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Status};
use schemars::generate::SchemaSettings;
use serde_json::Value;

fn main() {
    let mut generator = SchemaSettings::draft07()
        .with(|s| s.definitions_path = "/definitions".into())
        .into_generator();
    macro_rules! add { ($($kind:ty),* $(,)?) => { $(generator.subschema_for::<$kind>();)* } }
    add!(
        Namespace,
        Node,
        Pod,
        Service,
        Endpoints,
        ConfigMap,
        Secret,
        ServiceAccount,
        Event,
        events::Event,
        EndpointSlice,
        NetworkPolicy,
        ServiceCIDR,
        IPAddress,
        Deployment,
        ReplicaSet,
        Lease,
        CustomResourceDefinition,
        Scale,
        Status,
        DeleteOptions,
    );
    let mut definitions = Value::Object(generator.take_definitions(true));
    tidy(&mut definitions);
    optional_metadata(&mut definitions);
    sort(&mut definitions);
    println!(
        "{}",
        serde_json::to_string_pretty(&definitions).expect("a Value serialises")
    );
}

/// `allOf: [{$ref}]` beside a description becomes the plain `$ref` that Kubernetes' own document has.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Array(all)) = fields.get("allOf")
                && let [Value::Object(only)] = all.as_slice()
                && let Some(reference) = only.get("$ref").cloned()
            {
                fields.shift_remove("allOf");
                fields.insert("$ref".into(), reference);
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// k8s-openapi's types always have metadata; in Kubernetes' document it is optional.
fn optional_metadata(definitions: &mut Value) {
    for definition in definitions
        .as_object_mut()
        .into_iter()
        .flat_map(|all| all.values_mut())
    {
        if let Some(required) = definition.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|field| field != "metadata");
            if required.is_empty() {
                definition
                    .as_object_mut()
                    .map(|fields| fields.shift_remove("required"));
            }
        }
    }
}

fn sort(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.sort_keys();
            fields.values_mut().for_each(sort);
        }
        Value::Array(items) => items.iter_mut().for_each(sort),
        _ => {}
    }
}
