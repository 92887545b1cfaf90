//! How long ADD and DEL take: podnet's plugin against the reference plugins `ptp` and `host-local`, by turns on one
//! node of a lab, called as a runtime calls them.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use miette::{Context, IntoDiagnostic, miette};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// As many pods as a node has by default.
const AT_ONCE: usize = 110;
const CONFLIST: &str = "/etc/cni/net.d/10-podnet.conflist";
/// Where Debian's containernetworking-plugins are.
const REFERENCE: &str = "/usr/lib/cni";

/// Measures within a node, and prints what it found as JSON (used by `bench`)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 30)]
    runs: u16,
}

/// What both plugins took, in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VerbTimes {
    podnet: Times,
    reference: Times,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
    add_at_once: Vec<f64>,
    del_at_once: Vec<f64>,
}

/// A plugin and its configuration.
struct Plugin {
    executable: PathBuf,
    conf: Value,
    times: Times,
}

/// Measures here, which is a node with podnet on it.
pub(crate) fn run(args: &Args) -> miette::Result<()> {
    let mut plugins = [podnet()?, reference()?];
    for run in 0..args.runs {
        for plugin in &mut plugins {
            let pod = Pod::new(&format!("one-{run}"))?;
            plugin
                .times
                .add
                .push(timed(|| plugin_call(plugin, "ADD", &[&pod]))?);
            plugin
                .times
                .del
                .push(timed(|| plugin_call(plugin, "DEL", &[&pod]))?);
        }
    }
    for run in 0..args.runs.div_ceil(10) {
        for plugin in &mut plugins {
            let pods = (0..AT_ONCE).map(|n| Pod::new(&format!("many-{run}-{n}")));
            let pods = pods.collect::<miette::Result<Vec<_>>>()?;
            let pods: Vec<&Pod> = pods.iter().collect();
            plugin
                .times
                .add_at_once
                .push(timed(|| plugin_call(plugin, "ADD", &pods))?);
            plugin
                .times
                .del_at_once
                .push(timed(|| plugin_call(plugin, "DEL", &pods))?);
        }
    }
    let [podnet, reference] = plugins.map(|plugin| plugin.times);
    println!("{}", json!(VerbTimes { podnet, reference }));
    Ok(())
}

fn podnet() -> miette::Result<Plugin> {
    let text = std::fs::read(CONFLIST)
        .into_diagnostic()
        .wrap_err_with(|| format!("there is no {CONFLIST}"))?;
    let list: Value = serde_json::from_slice(&text).into_diagnostic()?;
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = "1.0.0".into();
    Ok(Plugin {
        executable: "/opt/cni/bin/podnet-cni".into(),
        conf,
        times: Times::default(),
    })
}

fn reference() -> miette::Result<Plugin> {
    let executable = Path::new(REFERENCE).join("ptp");
    if !executable.exists() {
        return Err(miette!(
            help = "apt-get install containernetworking-plugins",
            "there is no {}",
            executable.display()
        ));
    }
    let conf = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "ptp",
        "ipam": { "type": "host-local", "dataDir": "/run/bench-host-local", "subnet": "10.99.0.0/16",
                  "routes": [{ "dst": "0.0.0.0/0" }] },
    });
    Ok(Plugin {
        executable,
        conf,
        times: Times::default(),
    })
}

/// A network namespace with a name, as a runtime makes it; gone with this value.
struct Pod(String);

impl Pod {
    fn new(name: &str) -> miette::Result<Self> {
        let pod = Pod(format!("bench-{name}"));
        netns("add", &pod.0)?;
        Ok(pod)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = netns("del", &self.0) {
            eprintln!("{error:?}");
        }
    }
}

fn netns(verb: &str, name: &str) -> miette::Result<()> {
    let status = Command::new("ip")
        .args(["netns", verb, name])
        .status()
        .into_diagnostic()?;
    if status.success() {
        Ok(())
    } else {
        Err(miette!("ip netns {verb} {name}: {status}"))
    }
}

fn timed(work: impl FnOnce() -> miette::Result<()>) -> miette::Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Calls a plugin for all pods at once and waits for all answers.
fn plugin_call(plugin: &Plugin, verb: &str, pods: &[&Pod]) -> miette::Result<()> {
    let conf = plugin.conf.to_string();
    let children = pods.iter().map(|pod| start(plugin, verb, pod, conf.as_bytes()));
    let children = children.collect::<miette::Result<Vec<Child>>>()?;
    for child in children {
        let output = child.wait_with_output().into_diagnostic()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            return Err(miette!("{} {verb}: {said}", plugin.executable.display()));
        }
    }
    Ok(())
}

fn start(plugin: &Plugin, verb: &str, pod: &Pod, conf: &[u8]) -> miette::Result<Child> {
    let mut child = Command::new(&plugin.executable)
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &pod.0)
        .env("CNI_NETNS", format!("/run/netns/{}", pod.0))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", REFERENCE)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run {}", plugin.executable.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(conf).into_diagnostic()?;
    }
    Ok(child)
}

/// The figure below which so many percent of the figures are.
fn percentile(figures: &[f64], percent: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for VerbTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Column = fn(&Times) -> &Vec<f64>;
        let rows: [(&str, Column); 4] = [
            ("ADD", |times| &times.add),
            ("DEL", |times| &times.del),
            ("110 ADDs at once", |times| &times.add_at_once),
            ("110 DELs at once", |times| &times.del_at_once),
        ];
        writeln!(
            f,
            "milliseconds, podnet against the reference plugins ptp and host-local; less than 1 is better:"
        )?;
        for (name, of) in rows {
            let at = |times, percent| percentile(of(times), percent);
            let (ours, theirs) = (&self.podnet, &self.reference);
            writeln!(
                f,
                "  {name}: p50 {:.1} against {:.1} ({:.2}), p99 {:.1} against {:.1} ({:.2})",
                at(ours, 50),
                at(theirs, 50),
                at(ours, 50) / at(theirs, 50),
                at(ours, 99),
                at(theirs, 99),
                at(ours, 99) / at(theirs, 99),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_figures_of_the_list() {
        let figures: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(
            (percentile(&figures, 50), percentile(&figures, 99)),
            (100.0, 198.0)
        );
        assert_eq!(percentile(&[3.0], 99), 3.0);
        assert!(percentile(&[], 50).is_nan());
    }
}
