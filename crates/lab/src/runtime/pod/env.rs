//! A container's environment, and `$(VAR)` in commands, arguments and values.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};

use super::fields::{self, Facts};

/// The objects that a container's environment reads.
pub trait Objects {
    /// The ConfigMap of that name in the pod's namespace, if there is one.
    fn config_map(&self, name: &str) -> Option<&ConfigMap>;
    /// The Secret of that name in the pod's namespace, if there is one.
    fn secret(&self, name: &str) -> Option<&Secret>;
}

/// The names of the ConfigMaps and Secrets that the container's environment reads.
pub fn references(container: &Container) -> (Vec<&str>, Vec<&str>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|it| it.name.as_str()));
        secrets.extend(source.secret_ref.iter().map(|it| it.name.as_str()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|it| it.value_from.as_ref())
    {
        config_maps.extend(source.config_map_key_ref.iter().map(|it| it.name.as_str()));
        secrets.extend(source.secret_key_ref.iter().map(|it| it.name.as_str()));
    }
    (config_maps, secrets)
}

/// The container's environment, in kubelet's order of precedence: services, then `envFrom`, then `env`.
/// The error is what the container's waiting message says.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    objects: &impl Objects,
    facts: Facts<'_>,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Ordered::default();
    from_sources(pod, container, objects, &mut env)?;
    for var in container.env.iter().flatten() {
        let value = match &var.value {
            Some(value) if !value.is_empty() => Some(expand(value, |name| {
                env.get(name).or_else(|| services.get(name).cloned())
            })),
            _ => from_reference(pod, container, var, objects, facts)?,
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    for (name, value) in services {
        if env.get(name).is_none() {
            env.set(name, value.clone());
        }
    }
    Ok(env.list)
}

#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<String> {
        self.list
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.list.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => self.list.push((name.to_owned(), value)),
        }
    }
}

fn from_sources(
    pod: &Pod,
    container: &Container,
    objects: &impl Objects,
    env: &mut Ordered,
) -> Result<(), String> {
    let namespace = super::spec::namespace(pod);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_map(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secret(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(
                            &format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret \"{namespace}/{}\" not found", reference.name)),
            }
        }
    }
    Ok(())
}

/// `None` leaves the variable out: what it refers to is missing and optional.
fn from_reference(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    objects: &impl Objects,
    facts: Facts<'_>,
) -> Result<Option<String>, String> {
    let Some(source) = &var.value_from else {
        return Ok(Some(String::new()));
    };
    if let Some(reference) = &source.field_ref {
        return fields::field(pod, &reference.field_path, facts).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource(pod, Some(container), selector, facts).map(Some);
    }
    let namespace = super::spec::namespace(pod);
    if let Some(reference) = &source.config_map_key_ref {
        let object = objects.config_map(&reference.name);
        let found = object.map(|map| {
            map.data
                .as_ref()
                .and_then(|data| data.get(&reference.key))
                .cloned()
        });
        return pick(found, reference.optional, || {
            (
                format!("configmap \"{}\" not found", reference.name),
                format!(
                    "couldn't find key {} in ConfigMap {namespace}/{}",
                    reference.key, reference.name
                ),
            )
        });
    }
    if let Some(reference) = &source.secret_key_ref {
        let object = objects.secret(&reference.name);
        let text = |value: &k8s_openapi::ByteString| String::from_utf8_lossy(&value.0).into_owned();
        let found = object.map(|secret| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(&reference.key))
                .map(text)
        });
        return pick(found, reference.optional, || {
            (
                format!("secret \"{}\" not found", reference.name),
                format!(
                    "couldn't find key {} in Secret {namespace}/{}",
                    reference.key, reference.name
                ),
            )
        });
    }
    Err(format!(
        "environment variable {} has a source that the lab does not know",
        var.name
    ))
}

fn pick(
    found: Option<Option<String>>,
    optional: Option<bool>,
    errors: impl FnOnce() -> (String, String),
) -> Result<Option<String>, String> {
    match found {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        None => Err(errors().0),
        Some(None) => Err(errors().1),
    }
}

/// Replaces `$(NAME)` by the value of NAME. What has no value stays as it is, and `$$` stands for `$`.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            tail
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => out.extend(["$(", name, ")"]),
            }
            tail
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    out
}

/// [`expand`] over a command's words with a container's environment.
pub fn expand_all(words: &[String], env: &[(String, String)]) -> Vec<String> {
    let value = |name: &str| {
        env.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    words.iter().map(|word| expand(word, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::spec::spec;
    use crate::runtime::pod::testing::pod;

    struct Given(Vec<ConfigMap>, Vec<Secret>);

    impl Objects for Given {
        fn config_map(&self, name: &str) -> Option<&ConfigMap> {
            self.0.iter().find(|it| it.metadata.name.as_deref() == Some(name))
        }
        fn secret(&self, name: &str) -> Option<&Secret> {
            self.1.iter().find(|it| it.metadata.name.as_deref() == Some(name))
        }
    }

    fn given() -> Given {
        let map = r#"{"metadata":{"name":"m"},"data":{"COLOUR":"red","SIZE":"7"}}"#;
        let secret = r#"{"metadata":{"name":"s"},"data":{"KEY":"aHVzaA=="}}"#;
        Given(
            vec![serde_json::from_str(map).unwrap()],
            vec![serde_json::from_str(secret).unwrap()],
        )
    }

    fn env(container: &str) -> Result<Vec<(String, String)>, String> {
        let pod = pod(&format!(r#"{{"nodeName":"node1","containers":[{container}]}}"#));
        let services = BTreeMap::from([("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]);
        let facts = Facts {
            pod_ips: &[],
            node_ips: &[],
            cpus: 2,
            memory: 1,
        };
        environment(&pod, &spec(&pod).containers[0], &services, &given(), facts)
    }

    fn get(env: &[(String, String)], name: &str) -> Option<String> {
        env.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let value = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("100$", "100$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, value), expected, "{text}");
        }
    }

    #[test]
    fn later_sources_win_and_values_see_earlier_ones() {
        let env = env(
            r#"{"name":"a","envFrom":[{"configMapRef":{"name":"m"}},{"prefix":"P_","secretRef":{"name":"s"}}],
            "env":[{"name":"SIZE","value":"8"},{"name":"TWICE","value":"$(SIZE)$(SIZE)"},
                {"name":"NODE","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}},
                {"name":"HUSH","valueFrom":{"secretKeyRef":{"name":"s","key":"KEY"}}},
                {"name":"API","value":"https://$(KUBERNETES_SERVICE_HOST)"},
                {"name":"EMPTY"},{"name":"LATER","value":"$(UNSET)"}]}"#,
        )
        .unwrap();
        for (name, value) in [
            ("COLOUR", "red"),
            ("P_KEY", "hush"),
            ("SIZE", "8"),
            ("TWICE", "88"),
            ("NODE", "node1"),
            ("HUSH", "hush"),
            ("API", "https://10.96.0.1"),
            ("EMPTY", ""),
            ("LATER", "$(UNSET)"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ] {
            assert_eq!(get(&env, name).as_deref(), Some(value), "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        let map_ref = |name: &str, key: &str, optional: bool| {
            env(&format!(
                r#"{{"name":"a","env":[{{"name":"X","valueFrom":{{"configMapKeyRef":
                {{"name":"{name}","key":"{key}","optional":{optional}}}}}}}]}}"#
            ))
        };
        assert_eq!(
            map_ref("none", "k", false).unwrap_err(),
            "configmap \"none\" not found"
        );
        assert_eq!(
            map_ref("m", "k", false).unwrap_err(),
            "couldn't find key k in ConfigMap default/m"
        );
        assert_eq!(get(&map_ref("none", "k", true).unwrap(), "X"), None);
        assert_eq!(get(&map_ref("m", "k", true).unwrap(), "X"), None);
    }
}
