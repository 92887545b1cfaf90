//! Network configurations in `net.d`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CniError;

/// The versions of the protocol that the runtime speaks, newest first.
const SPOKEN: [&str; 5] = ["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0"];

/// A network: its plugins, to be called in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version of the protocol to speak.
    pub version: String,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// One configuration per plugin.
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// The first network of the directory, in the order of file names. Files that are no configuration are
    /// passed over, as other runtimes do.
    pub fn first(dir: &Path) -> Result<NetworkList, CniError> {
        let mut problem = None;
        for path in candidates(dir) {
            match Self::load(&path) {
                Ok(list) => return Ok(list),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(|| CniError::NotInitialized(dir.display().to_string())))
    }

    fn load(path: &Path) -> Result<NetworkList, CniError> {
        let file = path.display().to_string();
        let text = std::fs::read(path).map_err(|error| CniError::Config {
            file: file.clone(),
            problem: error.to_string(),
        })?;
        Self::parse(&text).map_err(|problem| CniError::Config { file, problem })
    }

    /// Reads a list (`plugins`) or the configuration of a single plugin (`type`).
    pub fn parse(text: &[u8]) -> Result<NetworkList, String> {
        let mut object: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let name = match object.get("name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => return Err("no name".into()),
        };
        let version = version(&object)?;
        let disable_check = flag(&object, "disableCheck");
        let plugins = match object.remove("plugins") {
            None => vec![object],
            Some(Value::Array(plugins)) => plugins.into_iter().map(plugin).collect::<Result<_, _>>()?,
            Some(_) => return Err("plugins is not a list".into()),
        };
        if plugins.is_empty() {
            return Err("no plugins in list".into());
        }
        if plugins
            .iter()
            .any(|it| it.get("type").and_then(Value::as_str).is_none_or(str::is_empty))
        {
            return Err("a plugin has no type".into());
        }
        Ok(NetworkList {
            name,
            version,
            disable_check,
            plugins,
        })
    }
}

fn candidates(dir: &Path) -> Vec<std::path::PathBuf> {
    let wanted = |path: &Path| {
        path.extension()
            .and_then(|it| it.to_str())
            .is_some_and(|it| matches!(it, "conf" | "conflist" | "json"))
    };
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| wanted(path))
        .collect();
    paths.sort();
    paths
}

/// The newest version that the network offers and the runtime speaks.
fn version(object: &Map<String, Value>) -> Result<String, String> {
    let mut offered: Vec<_> = object
        .get("cniVersions")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    offered.extend(object.get("cniVersion").and_then(Value::as_str));
    if offered.is_empty() {
        return Err("no cniVersion".into());
    }
    let spoken = SPOKEN.iter().find(|spoken| offered.contains(spoken));
    spoken.map(|it| (*it).to_owned()).ok_or_else(|| {
        format!(
            "cniVersion {} is not one of {}",
            offered.join(", "),
            SPOKEN.join(", ")
        )
    })
}

/// Early configurations write flags as strings.
fn flag(object: &Map<String, Value>, key: &str) -> bool {
    match object.get(key) {
        Some(Value::Bool(set)) => *set,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn plugin(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("a plugin is not an object".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_valid_file_by_name_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let missing = NetworkList::first(dir.path()).unwrap_err();
        assert!(matches!(missing, CniError::NotInitialized(_)));
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("00-readme.txt", "{}");
        write("05-broken.conf", "{");
        assert!(
            NetworkList::first(dir.path())
                .unwrap_err()
                .to_string()
                .contains("05-broken.conf")
        );
        write("20-b.conf", r#"{"cniVersion":"0.4.0","name":"b","type":"x"}"#);
        assert_eq!(NetworkList::first(dir.path()).unwrap().name, "b");
        write(
            "10-a.conflist",
            r#"{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"x"},{"type":"y"}]}"#,
        );
        let list = NetworkList::first(dir.path()).unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("a", 2));
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let version = |versions: &str| {
            let text = format!(r#"{{"name":"a",{versions},"plugins":[{{"type":"x"}}]}}"#);
            NetworkList::parse(text.as_bytes()).map(|list| list.version)
        };
        assert_eq!(version(r#""cniVersion":"0.4.0""#).unwrap(), "0.4.0");
        assert_eq!(
            version(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.9.9"]"#).unwrap(),
            "1.1.0"
        );
        assert!(version(r#""cniVersion":"9.9.9""#).unwrap_err().contains("9.9.9"));
        assert!(version(r#""x":1"#).is_err());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{}]}"#,
            r#"{"cniVersion":"1.0.0","name":"a","plugins":{}}"#,
            r#"{"cniVersion":"1.0.0","name":"a"}"#,
            "[]",
        ] {
            assert!(NetworkList::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
