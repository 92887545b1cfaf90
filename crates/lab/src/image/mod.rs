//! Images: the machine's own root, the built-in echo server, and archives that were loaded.

mod archive;
mod layer;
mod name;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use archive::LoadError;
pub use name::ImageRef;
pub(crate) use store::ECHO_PROGRAM;
pub use store::{ImageMissing, Loaded, Store};

/// What a container's root and its defaults are taken from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Which kind it is.
    pub reference: ImageRef,
    /// For `status.containerStatuses[].imageID`: `sha256:...`, or the name of a built-in image.
    pub id: String,
    /// The unpacked root of a loaded image.
    pub root: Option<PathBuf>,
    /// Its defaults.
    pub config: ImageConfig,
}

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the whole command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// `user[:group]` by name or number.
    pub user: Option<String>,
}
