//! `cargo xtask demo`: from a fresh clone to a cluster to play with.

use crate::recipe::{self, bin, build};

/// Installs what building needs, builds, raises the lab.
pub(crate) fn run() -> miette::Result<()> {
    recipe::run(&["./.ci/setup", "--build"])?;
    build(&["--package", "podnet", "--package", "podnet-cni"])?;
    recipe::run(&["podnet", "lab", "up", "--nodes", "3", "-f", "examples/demo.yaml"])?;
    println!("\nNow:\n  export PATH=\"{}:$PATH\"", bin().display());
    println!("  export KUBECONFIG=\"$(podnet lab kubeconfig)\"\n  kubectl get pods -o wide");
    Ok(())
}
