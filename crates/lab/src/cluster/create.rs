//! Objects of manifests into the lab's API server.

use podnet_manifest::{Manifest, ManifestError};
use serde_json::Value;

use super::api::{Api, Refused};

/// Why an object was not created.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum CreateError {
    /// The server refuses it.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Manifest(#[from] ManifestError),
    /// The API server could not be asked.
    #[error("{0}")]
    Api(String),
}

/// Creates the object. What the server refuses is shown at the line it is about.
pub async fn create(manifest: &Manifest, api: &Api) -> Result<Value, CreateError> {
    let collection = collection(manifest, api).await?;
    let path = format!("{collection}?fieldValidation=Strict&fieldManager=podnet-lab");
    match api
        .post(&path, &manifest.object)
        .await
        .map_err(|error| CreateError::Api(format!("{error:?}")))?
    {
        Ok(created) => Ok(created),
        Err(refused) => Err(self::refused(manifest, &refused).into()),
    }
}

fn refused(manifest: &Manifest, refused: &Refused) -> ManifestError {
    let path = field_path(&refused.message);
    manifest.error(&path, refused.message.clone())
}

/// The collection that the object goes into, from the server's own discovery.
async fn collection(manifest: &Manifest, api: &Api) -> Result<String, CreateError> {
    let version = manifest.api_version();
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let unknown = || {
        let message = format!("this API server has no kind {} in {version}", manifest.kind());
        manifest.error(&["kind".into()], message)
    };
    // A kind from a CustomResourceDefinition of the same file is served a moment after its creation.
    let mut left = 20;
    loop {
        let answer = api
            .get(&root)
            .await
            .map_err(|error| CreateError::Api(format!("{error:?}")))?;
        let resource = answer.ok().and_then(|list| {
            let found = list["resources"].as_array()?.iter().find(|resource| {
                resource["kind"] == manifest.kind()
                    && resource["name"].as_str().is_some_and(|n| !n.contains('/'))
            })?;
            Some((found["name"].as_str()?.to_owned(), found["namespaced"].as_bool()?))
        });
        match resource {
            Some((plural, true)) => {
                return Ok(format!("{root}/namespaces/{}/{plural}", manifest.namespace()));
            }
            Some((plural, false)) => return Ok(format!("{root}/{plural}")),
            None if left == 0 || !version.contains('.') => return Err(unknown().into()),
            None => left -= 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
}

/// The field that a message of the API server is about: `unknown field "spec.a[0].b"`, or
/// `... is invalid: spec.a[0].b: Required value`. Empty when it names none.
fn field_path(message: &str) -> Vec<String> {
    let after = |marker: &str| message.split_once(marker).map(|(_, rest)| rest);
    let field = after("unknown field \"")
        .and_then(|rest| rest.split_once('"'))
        .or_else(|| {
            after(" is invalid: ").and_then(|rest| rest.trim_start_matches(['[', '<']).split_once(": "))
        })
        .map(|(field, _)| field)
        .unwrap_or_default();
    if field.contains(' ') {
        return Vec::new();
    }
    field
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']').to_owned())
        .filter(|step| !step.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_messages_are_understood() {
        assert_eq!(
            field_path("Pod \"a\" is invalid: spec.containers[0].name: Required value"),
            ["spec", "containers", "0", "name"]
        );
        assert_eq!(
            field_path("Pod \"a\" is invalid: [spec.x: Invalid value: 1: no, spec.y: no]"),
            ["spec", "x"]
        );
        assert!(field_path("pods \"a\" already exists").is_empty());
    }
}
