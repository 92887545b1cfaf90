//! Where the long-running subcommands tell what they do.

use std::io::IsTerminal;

/// To stderr, at level info unless RUST_LOG says otherwise; kube says at every attempt what we say once.
pub(crate) fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
