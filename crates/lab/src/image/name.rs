//! Image names as pods write them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which image a container names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ImageRef {
    /// The machine's own root filesystem under a private overlay.
    #[default]
    Host,
    /// The built-in echo server, with the machine's root beside it so that it has tools.
    Echo,
    /// A loaded image by its full name: `docker.io/library/nginx:latest`, or `name@sha256:...`.
    Loaded(String),
}

/// A name no registry would take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: {why}")]
pub struct InvalidName {
    /// What was written.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl ImageRef {
    /// Parses what a pod's `image` says; empty means the host.
    pub fn parse(name: &str) -> Result<ImageRef, InvalidName> {
        let invalid = |why| {
            Err(InvalidName {
                name: name.to_owned(),
                why,
            })
        };
        let (path, _) = split_tag(name);
        match path {
            "" if name.is_empty() => return Ok(ImageRef::Host),
            "host" => return Ok(ImageRef::Host),
            "podnet/echo" => return Ok(ImageRef::Echo),
            _ => {}
        }
        if !path
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-/:".contains(c))
        {
            return invalid("only letters, digits, '.', '_', '-', '/' and a port may stand in it");
        }
        let (registry, repository) = split_registry(path);
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return invalid("a repository name must be lowercase");
        }
        if repository.is_empty() || repository.split('/').any(str::is_empty) {
            return invalid("an empty part between slashes");
        }
        Ok(ImageRef::Loaded(full_name(registry, repository, name)))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageRef::Host => f.write_str("host"),
            ImageRef::Echo => f.write_str("podnet/echo"),
            ImageRef::Loaded(name) => f.write_str(name),
        }
    }
}

/// The path, and the tag or digest with its mark (`:1.25`, `@sha256:...`), or an empty string.
fn split_tag(name: &str) -> (&str, &str) {
    if let Some(at) = name.find('@') {
        return name.split_at(at);
    }
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => name.split_at(colon),
        _ => (name, ""),
    }
}

/// The first part is a registry when it has a dot or a port, or is localhost (as Docker decides).
fn split_registry(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, path),
    }
}

fn full_name(registry: Option<&str>, repository: &str, name: &str) -> String {
    let tag = match split_tag(name).1 {
        "" | ":" => ":latest",
        tag => tag,
    };
    // A digest is the whole identity; a tag before it says nothing more.
    let repository = split_tag(repository).0;
    match registry {
        None | Some("index.docker.io" | "docker.io") if !repository.contains('/') => {
            format!("docker.io/library/{repository}{tag}")
        }
        None | Some("index.docker.io") => format!("docker.io/{repository}{tag}"),
        Some(registry) => format!("{registry}/{repository}{tag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(name: &str) -> String {
        match ImageRef::parse(name) {
            Ok(ImageRef::Loaded(full)) => full,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn the_built_in_images_have_any_tag() {
        for name in ["", "host", "host:latest", "host:v1"] {
            assert_eq!(ImageRef::parse(name), Ok(ImageRef::Host), "{name}");
        }
        for name in ["podnet/echo", "podnet/echo:0.1"] {
            assert_eq!(ImageRef::parse(name), Ok(ImageRef::Echo), "{name}");
        }
    }

    #[test]
    fn short_names_are_docker_hubs() {
        assert_eq!(loaded("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(loaded("nginx:1.25"), "docker.io/library/nginx:1.25");
        assert_eq!(loaded("docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(loaded("grafana/loki"), "docker.io/grafana/loki:latest");
        assert_eq!(loaded("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(loaded("registry.k8s.io/pause:3.9"), "registry.k8s.io/pause:3.9");
        assert_eq!(loaded("quay.io/x/y:1@sha256:abc"), "quay.io/x/y@sha256:abc");
    }

    #[test]
    fn nonsense_is_refused() {
        for name in ["Nginx", "a//b", "a b", "/x", ":5", "x/../y z"] {
            assert!(ImageRef::parse(name).is_err(), "{name}");
        }
    }
}
