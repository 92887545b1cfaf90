//! The files of a volume that is made from objects.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use super::VolumeError;
use crate::runtime::pod::env::Objects;
use crate::runtime::pod::fields::{self, Facts};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its contents.
    pub contents: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// The files by path relative to the volume.
pub type Payload = BTreeMap<String, Entry>;

/// The mode of files when nothing else is said.
const DEFAULT_MODE: i32 = 0o644;

/// The files of `volume`, which is a configMap, secret, downwardAPI or projected one.
pub fn payload(
    pod: &Pod,
    volume: &Volume,
    objects: &impl Objects,
    facts: Facts<'_>,
) -> Result<Payload, VolumeError> {
    let mut files = Files {
        pod,
        objects,
        facts,
        payload: Payload::new(),
    };
    files
        .fill(volume)
        .map_err(|problem| VolumeError::new(&volume.name, problem))?;
    Ok(files.payload)
}

struct Files<'a, O> {
    pod: &'a Pod,
    objects: &'a O,
    facts: Facts<'a>,
    payload: Payload,
}

impl<O: Objects> Files<'_, O> {
    fn fill(&mut self, volume: &Volume) -> Result<(), String> {
        if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            self.config_map(
                &source.name,
                source.items.as_deref(),
                optional,
                mode(source.default_mode),
            )?;
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let optional = source.optional == Some(true);
            self.secret(name, source.items.as_deref(), optional, mode(source.default_mode))?;
        }
        if let Some(source) = &volume.downward_api {
            self.downward(
                source.items.as_deref().unwrap_or_default(),
                mode(source.default_mode),
            )?;
        }
        let Some(projected) = &volume.projected else {
            return Ok(());
        };
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(it) = &source.config_map {
                self.config_map(&it.name, it.items.as_deref(), it.optional == Some(true), mode)?;
            }
            if let Some(it) = &source.secret {
                self.secret(&it.name, it.items.as_deref(), it.optional == Some(true), mode)?;
            }
            if let Some(it) = &source.downward_api {
                self.downward(it.items.as_deref().unwrap_or_default(), mode)?;
            }
            // Tokens and trust bundles: the embedded API server issues none, so these files are left out.
        }
        Ok(())
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), String> {
        let data = self.objects.config_map(name).map(config_map_data);
        self.take(
            data,
            items,
            optional,
            mode,
            &format!("configmap \"{name}\" not found"),
        )?
        .map_err(|key| format!("configmap references non-existent config key: {key}"))
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), String> {
        let data = self.objects.secret(name).map(|secret| {
            let data = secret.data.iter().flatten();
            data.map(|(key, value)| (key.clone(), value.0.clone())).collect()
        });
        self.take(
            data,
            items,
            optional,
            mode,
            &format!("secret \"{name}\" not found"),
        )?
        .map_err(|key| format!("references non-existent secret key: {key}"))
    }

    /// Takes what an object has. It may be missing when it is optional; the inner error is the key that is missing in it.
    fn take(
        &mut self,
        data: Option<BTreeMap<String, Vec<u8>>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
        missing: &str,
    ) -> Result<Result<(), String>, String> {
        match data {
            Some(data) => Ok(self.project(&data, items, optional, mode)),
            None if optional => Ok(Ok(())),
            None => Err(missing.to_owned()),
        }
    }

    /// The error is the key that is missing.
    fn project(
        &mut self,
        data: &BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), String> {
        let Some(items) = items.filter(|it| !it.is_empty()) else {
            for (key, contents) in data {
                self.payload.insert(
                    key.clone(),
                    Entry {
                        contents: contents.clone(),
                        mode,
                    },
                );
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(contents) => {
                    let mode = item.mode.map_or(mode, |own| self::mode(Some(own)));
                    self.payload.insert(
                        item.path.clone(),
                        Entry {
                            contents: contents.clone(),
                            mode,
                        },
                    );
                }
                None if optional => {}
                None => return Err(item.key.clone()),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], mode: u32) -> Result<(), String> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => fields::field(self.pod, &field.field_path, self.facts)?,
                (None, Some(selector)) => fields::resource(self.pod, None, selector, self.facts)?,
                (None, None) => return Err(format!("{} refers to nothing", item.path)),
            };
            let mode = item.mode.map_or(mode, |own| self::mode(Some(own)));
            self.payload.insert(
                item.path.clone(),
                Entry {
                    contents: text.into_bytes(),
                    mode,
                },
            );
        }
        Ok(())
    }
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten();
    let binary = binary.map(|(key, ByteString(value))| (key.clone(), value.clone()));
    text.chain(binary).collect()
}

fn mode(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0) & 0o777
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;
    use k8s_openapi::api::core::v1::Secret;

    struct Given(ConfigMap, Secret);

    impl Objects for Given {
        fn config_map(&self, name: &str) -> Option<&ConfigMap> {
            (name == "m").then_some(&self.0)
        }
        fn secret(&self, name: &str) -> Option<&Secret> {
            (name == "s").then_some(&self.1)
        }
    }

    fn files(volume: &str) -> Result<Vec<(String, String, u32)>, String> {
        let given = Given(
            serde_json::from_str(r#"{"data":{"a":"1","b":"2"},"binaryData":{"c":"Mw=="}}"#).unwrap(),
            serde_json::from_str(r#"{"data":{"k":"aHVzaA=="}}"#).unwrap(),
        );
        let volume: Volume = serde_json::from_str(volume).unwrap();
        let facts = Facts {
            pod_ips: &[],
            node_ips: &[],
            cpus: 1,
            memory: 1,
        };
        let payload =
            payload(&pod(r#"{"containers":[]}"#), &volume, &given, facts).map_err(|it| it.to_string())?;
        Ok(payload
            .into_iter()
            .map(|(path, it)| (path, String::from_utf8(it.contents).unwrap(), it.mode))
            .collect())
    }

    fn file(path: &str, contents: &str, mode: u32) -> (String, String, u32) {
        (path.into(), contents.into(), mode)
    }

    #[test]
    fn a_config_map_gives_a_file_per_key() {
        assert_eq!(
            files(r#"{"name":"v","configMap":{"name":"m"}}"#).unwrap(),
            [
                file("a", "1", 0o644),
                file("b", "2", 0o644),
                file("c", "3", 0o644)
            ]
        );
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let volume = r#"{"name":"v","secret":{"secretName":"s","defaultMode":256,
            "items":[{"key":"k","path":"deep/er/key"},{"key":"k","path":"x","mode":511}]}}"#;
        assert_eq!(
            files(volume).unwrap(),
            [file("deep/er/key", "hush", 0o400), file("x", "hush", 0o777)]
        );
    }

    #[test]
    fn what_is_missing_is_named_unless_optional() {
        let missing = |optional: bool| {
            files(&format!(
                r#"{{"name":"v","configMap":{{"name":"none","optional":{optional}}}}}"#
            ))
        };
        assert_eq!(
            missing(false).unwrap_err(),
            "MountVolume.SetUp failed for volume \"v\" : configmap \"none\" not found"
        );
        assert_eq!(missing(true).unwrap(), []);
        let key = files(r#"{"name":"v","configMap":{"name":"m","items":[{"key":"z","path":"z"}]}}"#);
        assert!(
            key.unwrap_err()
                .ends_with("configmap references non-existent config key: z")
        );
    }

    #[test]
    fn projected_sources_come_together() {
        let volume = r#"{"name":"v","projected":{"sources":[
            {"configMap":{"name":"m","items":[{"key":"a","path":"cfg/a"}]}},
            {"secret":{"name":"s"}},{"serviceAccountToken":{"path":"token"}},
            {"downwardAPI":{"items":[{"path":"name","fieldRef":{"fieldPath":"metadata.name"}}]}}]}}"#;
        assert_eq!(
            files(volume).unwrap(),
            [
                file("cfg/a", "1", 0o644),
                file("k", "hush", 0o644),
                file("name", "web", 0o644)
            ]
        );
    }
}
