//! Volumes of a pod, and where containers mount them.

use serde_json::Value;

use super::{Errors, FieldError, container, invalid_each, names};
use crate::kinds::value::{entries, list, text, unset};

/// Judges the volumes and returns their names.
pub(super) fn volumes<'a>(errors: &mut Errors, path: &str, volumes: &'a [Value]) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let before = errors.len();
        source(errors, &path, volume);
        let name = text(&volume["name"]);
        let name_path = format!("{path}.name");
        if name.is_empty() {
            errors.push(FieldError::required(name_path, ""));
        } else {
            invalid_each(errors, &name_path, &volume["name"], names::dns1123_label(name));
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(name_path, name));
            }
        }
        // As in Kubernetes: a volume with an error cannot be mounted.
        if errors.len() == before {
            seen.push(name);
        }
    }
    seen
}

fn source(errors: &mut Errors, path: &str, volume: &Value) {
    let mut sources = entries(volume).filter(|(field, value)| *field != "name" && !value.is_null());
    let Some((kind, source)) = sources.next() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for (extra, _) in sources {
        let detail = "may not specify more than 1 volume type";
        errors.push(FieldError::forbidden(format!("{path}.{extra}"), detail));
    }
    let path = format!("{path}.{kind}");
    match kind {
        "configMap" => named_source(errors, &path, source, "name"),
        "secret" => named_source(errors, &path, source, "secretName"),
        "downwardAPI" => {
            mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
            downward_items(errors, &path, source);
        }
        "projected" => projected(errors, &path, source),
        "hostPath" => host_path(errors, &path, source),
        "emptyDir" if text(&source["sizeLimit"]).starts_with('-') => {
            let detail = "SizeLimit field must be a valid resource quantity";
            errors.push(FieldError::forbidden(format!("{path}.sizeLimit"), detail));
        }
        "persistentVolumeClaim" if unset(&source["claimName"]) => {
            errors.push(FieldError::required(format!("{path}.claimName"), ""));
        }
        _ => {}
    }
}

fn named_source(errors: &mut Errors, path: &str, source: &Value, name: &str) {
    if unset(&source[name]) {
        errors.push(FieldError::required(format!("{path}.{name}"), ""));
    }
    mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
    items(errors, path, source);
}

fn items(errors: &mut Errors, path: &str, source: &Value) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if unset(&item["key"]) {
            errors.push(FieldError::required(format!("{path}.key"), ""));
        }
        if unset(&item["path"]) {
            errors.push(FieldError::required(format!("{path}.path"), ""));
        }
        relative_path(errors, &format!("{path}.path"), &item["path"]);
        mode(errors, &format!("{path}.mode"), &item["mode"]);
    }
}

const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

fn downward_items(errors: &mut Errors, path: &str, source: &Value) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if unset(&item["path"]) {
            errors.push(FieldError::required(format!("{path}.path"), ""));
        }
        relative_path(errors, &format!("{path}.path"), &item["path"]);
        let (field, resource) = (&item["fieldRef"], &item["resourceFieldRef"]);
        if field.is_object() {
            container::field_reference(errors, &format!("{path}.fieldRef"), field, DOWNWARD_FIELDS);
            if resource.is_object() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, "resource", detail));
            }
        } else if resource.is_object() {
            container::resource_reference(errors, &format!("{path}.resourceFieldRef"), resource, true);
        } else {
            errors.push(FieldError::required(
                &path,
                "one of fieldRef and resourceFieldRef is required",
            ));
        }
        mode(errors, &format!("{path}.mode"), &item["mode"]);
    }
}

fn projected(errors: &mut Errors, path: &str, source: &Value) {
    mode(errors, &format!("{path}.defaultMode"), &source["defaultMode"]);
    for (i, part) in list(&source["sources"]).iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let mut kinds = entries(part);
        match kinds.next() {
            None => errors.push(FieldError::required(&path, "must specify a volume source")),
            Some(("configMap", map)) => named_source(errors, &format!("{path}.configMap"), map, "name"),
            Some(("secret", secret)) => named_source(errors, &format!("{path}.secret"), secret, "name"),
            Some(("downwardAPI", d)) => downward_items(errors, &format!("{path}.downwardAPI"), d),
            Some(("serviceAccountToken", token)) if unset(&token["path"]) => {
                errors.push(FieldError::required(
                    format!("{path}.serviceAccountToken.path"),
                    "",
                ));
            }
            Some(_) => {}
        }
        for (extra, _) in kinds {
            let detail = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(format!("{path}.{extra}"), detail));
        }
    }
}

fn host_path(errors: &mut Errors, path: &str, source: &Value) {
    if unset(&source["path"]) {
        errors.push(FieldError::required(format!("{path}.path"), ""));
    }
    no_backsteps(errors, &format!("{path}.path"), &source["path"]);
    let supported = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let kind = text(&source["type"]);
    if !supported.contains(&kind) {
        errors.push(FieldError::not_supported(
            format!("{path}.type"),
            kind,
            &supported,
        ));
    }
}

fn mode(errors: &mut Errors, path: &str, mode: &Value) {
    if mode.as_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode.clone(), detail));
    }
}

/// A path below a volume's root.
pub(super) fn relative_path(errors: &mut Errors, path: &str, value: &Value) {
    if text(value).starts_with('/') {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must be a relative path",
        ));
    }
    no_backsteps(errors, path, value);
}

fn no_backsteps(errors: &mut Errors, path: &str, value: &Value) {
    if text(value).split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value.clone(), "must not contain '..'"));
    }
}

/// Judges a container's mounts against the pod's volumes.
pub(super) fn mounts(errors: &mut Errors, path: &str, container: &Value, volumes: &[&str]) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, mount) in list(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        match text(&mount["name"]) {
            "" => errors.push(FieldError::required(format!("{path}.name"), "")),
            name if !volumes.contains(&name) => {
                errors.push(FieldError::not_found(format!("{path}.name"), name))
            }
            _ => {}
        }
        let target = text(&mount["mountPath"]);
        if target.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if seen.contains(&target) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                target,
                "must be unique",
            ));
        }
        seen.push(target);
        relative_path(errors, &format!("{path}.subPath"), &mount["subPath"]);
        if !unset(&mount["subPathExpr"]) {
            if !unset(&mount["subPath"]) {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(
                    format!("{path}.subPathExpr"),
                    mount["subPathExpr"].clone(),
                    detail,
                ));
            }
            relative_path(errors, &format!("{path}.subPathExpr"), &mount["subPathExpr"]);
        }
    }
}
