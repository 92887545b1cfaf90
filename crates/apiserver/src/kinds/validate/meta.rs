//! Metadata, the same for every kind.

use serde_json::{Value, json};

use super::{Errors, FieldError, invalid_each, names, service_cidr};
use crate::kinds::value::{entries, list, text, unset};

/// What a kind's names must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kinds) enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Dns1035,
    /// An address in its canonical form: IPAddresses.
    Address,
}

impl NameRule {
    fn check(self, name: &str) -> Vec<String> {
        match self {
            NameRule::Subdomain => names::dns1123_subdomain(name),
            NameRule::Label => names::dns1123_label(name),
            NameRule::Dns1035 => names::dns1035_label(name),
            NameRule::Address => service_cidr::address_name(name),
        }
    }
}

/// Total size of annotations.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Judges `metadata` as every kind's is judged.
pub(in crate::kinds) fn object_meta(meta: &Value, namespaced: bool, rule: NameRule) -> Errors {
    let mut errors = Vec::new();
    let prefix = text(&meta["generateName"]);
    if !prefix.is_empty() {
        // The prefix may end with a hyphen, the generated name will not.
        let masked = prefix
            .strip_suffix('-')
            .map_or(prefix.to_owned(), |p| format!("{p}a"));
        invalid_each(
            &mut errors,
            "metadata.generateName",
            &meta["generateName"],
            rule.check(&masked),
        );
    }
    match text(&meta["name"]) {
        "" => errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        )),
        name => invalid_each(&mut errors, "metadata.name", &meta["name"], rule.check(name)),
    }
    match (namespaced, text(&meta["namespace"])) {
        (true, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (true, namespace) => {
            let messages = names::dns1123_label(namespace);
            invalid_each(&mut errors, "metadata.namespace", &meta["namespace"], messages);
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(
            "metadata.namespace",
            "not allowed on this type",
        )),
    }
    labels(&mut errors, "metadata.labels", &meta["labels"]);
    annotations(&mut errors, "metadata.annotations", &meta["annotations"]);
    owner_references(&mut errors, &meta["ownerReferences"]);
    let finalizers = list(&meta["finalizers"]);
    for (i, finalizer) in finalizers.iter().enumerate() {
        let messages = names::qualified_name(text(finalizer));
        invalid_each(
            &mut errors,
            &format!("metadata.finalizers[{i}]"),
            finalizer,
            messages,
        );
    }
    if ["orphan", "foregroundDeletion"]
        .iter()
        .all(|f| finalizers.iter().any(|have| have == f))
    {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            json!(finalizers),
            detail,
        ));
    }
    errors
}

pub(super) fn labels(errors: &mut Errors, path: &str, labels: &Value) {
    for (key, value) in entries(labels) {
        invalid_each(errors, path, &key.into(), names::qualified_name(key));
        invalid_each(errors, path, value, names::label_value(text(value)));
    }
}

pub(super) fn annotations(errors: &mut Errors, path: &str, annotations: &Value) {
    let mut size = 0;
    for (key, value) in entries(annotations) {
        invalid_each(
            errors,
            path,
            &key.into(),
            names::qualified_name(&key.to_lowercase()),
        );
        size += key.len() + text(value).len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
}

fn owner_references(errors: &mut Errors, owners: &Value) {
    let mut controller: Option<&str> = None;
    for (i, owner) in list(owners).iter().enumerate() {
        let path = format!("metadata.ownerReferences[{i}]");
        for (field, message) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if unset(&owner[field]) {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", message));
            }
        }
        if owner["controller"] == true {
            let name = text(&owner["name"]);
            if let Some(first) = controller {
                errors.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    json!(owners),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} \
                         and {name}"
                    ),
                ));
            }
            controller = Some(name);
        }
    }
}

/// On the kinds that Kubernetes compiles in, a finalizer is a standard one or has a domain.
pub(in crate::kinds) fn standard_finalizers(errors: &mut Errors, path: &str, finalizers: &Value) {
    for (i, finalizer) in list(finalizers).iter().enumerate() {
        let name = text(finalizer);
        let standard = matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
        if !standard && !name.contains('/') {
            let message = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(format!("{path}[{i}]"), name, message));
        }
    }
}
