//! What one start of `podnet-cni` takes: it is exec'd for every pod.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use miette::{IntoDiagnostic, WrapErr, miette};
use serde::Serialize;

const STARTS: usize = 500;

/// The time from exec to exit of a request that needs no agent, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct PluginStart {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// Starts the plugin that lies beside `podnet`, again and again.
pub(super) fn measure(podnet: &Path) -> miette::Result<PluginStart> {
    let plugin = podnet.with_file_name("podnet-cni");
    let mut milliseconds = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let mut command = Command::new(&plugin);
        command.env_clear().env("CNI_COMMAND", "VERSION");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begin = Instant::now();
        let status = command.status();
        milliseconds.push(begin.elapsed().as_secs_f64() * 1000.0);
        let started = || format!("cannot start {}; build it first", plugin.display());
        if !status.into_diagnostic().wrap_err_with(started)?.success() {
            return Err(miette!("{} does not say its versions", plugin.display()));
        }
    }
    milliseconds.sort_by(f64::total_cmp);
    Ok(PluginStart {
        p50: milliseconds[STARTS / 2],
        p99: milliseconds[STARTS * 99 / 100],
    })
}
