//! The runtime's side of the CNI protocol: which network a pod gets, and calling its plugins in order.

mod attach;
pub mod conf;
mod exec;

pub use attach::{Attachment, Network, Request};
pub use exec::{Plugins, Verb};

/// Why the network could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no configuration.
    #[error("cni plugin not initialized: no network config found in {0}")]
    NotInitialized(String),
    /// A configuration does not say what it has to.
    #[error("network config {file}: {problem}")]
    Config {
        /// The file's path, or the network's name.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A plugin could not be started.
    #[error("plugin type=\"{plugin}\": {source}; is it in {path}?")]
    Spawn {
        /// The plugin's type.
        plugin: String,
        /// The directory that plugins are looked up in.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A plugin did not end in time and was killed.
    #[error("plugin type=\"{plugin}\" failed ({verb}): no answer within {seconds} s")]
    Timeout {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// A plugin said that it failed.
    #[error("plugin type=\"{plugin}\" failed ({verb}): {message}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: &'static str,
        /// The specification's error code, where it gave one.
        code: Option<u32>,
        /// What it said.
        message: String,
    },
    /// A plugin's answer is not a result.
    #[error("plugin type=\"{plugin}\" ({verb}) answered something that is not a result: {problem}")]
    Answer {
        /// The plugin's type.
        plugin: String,
        /// What it was asked to do.
        verb: &'static str,
        /// What is wrong.
        problem: String,
    },
}
