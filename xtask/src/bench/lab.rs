//! podnet's paths: labs raised by the real executable, and pods in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use miette::{Context, IntoDiagnostic, miette};

use super::verbs::VerbTimes;
use super::{PORT, Station, UpTimes};

/// The address of the service in front of the pod `served`, within the lab's service range.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 77, 77));
/// A server each: all of them run at once.
const PODS: [(&str, &str); 4] = [
    ("client", "node1"),
    ("near", "node1"),
    ("served", "node1"),
    ("far", "node2"),
];

/// A lab that goes down with this value.
struct Lab {
    podnet: PathBuf,
    name: String,
}

impl Lab {
    fn up(podnet: &Path, name: &str, arguments: &[&str]) -> miette::Result<Self> {
        if !podnet.exists() {
            return Err(miette!(
                help = "build it with `cargo build --release`, or name another one with --podnet",
                "there is no {}",
                podnet.display()
            ));
        }
        // A lab of an earlier run that was killed is in the way.
        let _ = lab(podnet, "down", name).stderr(Stdio::null()).output();
        let made = Lab {
            podnet: podnet.to_owned(),
            name: name.to_owned(),
        };
        run(lab(podnet, "up", name).args(arguments))?;
        Ok(made)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = run(&mut lab(&self.podnet, "down", &self.name)) {
            eprintln!("{error:?}");
        }
    }
}

fn lab(podnet: &Path, verb: &str, name: &str) -> Command {
    let mut command = Command::new(podnet);
    command.args(["lab", verb, "--name", name]).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> miette::Result<Vec<u8>> {
    let output = command
        .output()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(miette!(
        "{command:?} failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Raises a lab of three nodes with the demo again and again.
pub(super) fn up_times(podnet: &Path, runs: u16) -> miette::Result<UpTimes> {
    let mut seconds = Vec::new();
    for run in 1..=runs {
        eprintln!("podnet lab up, run {run} of {runs}");
        let started = Instant::now();
        let lab = Lab::up(podnet, "bench-up", &["--nodes", "3", "-f", "examples/demo.yaml"])?;
        seconds.push(started.elapsed().as_secs_f64());
        drop(lab);
    }
    Ok(UpTimes::new(seconds))
}

/// Times ADD and DEL on the node of a lab that has no pods.
pub(super) fn verb_times(podnet: &Path, runs: u16) -> miette::Result<VerbTimes> {
    eprintln!("ADD and DEL, {runs} runs");
    let up = Lab::up(podnet, "bench-plugins", &["--nodes", "1"])?;
    let mut command = lab(podnet, "node", &up.name);
    command.args(["node1", "--"]).arg(super::own_executable()?);
    let output = run(command.args(["verb-times", "--runs", &runs.to_string()]))?;
    serde_json::from_slice(&output).into_diagnostic()
}

/// How a lab is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mode {
    routing: &'static str,
    dataplane: &'static str,
}

impl Mode {
    pub(super) const fn new(routing: &'static str, dataplane: &'static str) -> Self {
        Mode { routing, dataplane }
    }
}

/// One lab per mode, raised when it is first asked for.
pub(super) struct Labs {
    podnet: PathBuf,
    raised: BTreeMap<Mode, Rc<Lab>>,
}

type Ends = (Station, Station, IpAddr);

impl Labs {
    pub(super) fn new(podnet: &Path) -> Self {
        Labs {
            podnet: podnet.to_owned(),
            raised: BTreeMap::new(),
        }
    }

    /// Two pods of one node.
    pub(super) fn one_node(&mut self, mode: Mode) -> miette::Result<Ends> {
        self.pods(mode, "near")
    }

    /// Two pods of one node, and the address of a service in front of one of them.
    pub(super) fn service(&mut self, mode: Mode) -> miette::Result<Ends> {
        let (client, server, _) = self.pods(mode, "served")?;
        Ok((client, server, SERVICE))
    }

    /// Two pods of two nodes.
    pub(super) fn two_nodes(&mut self, mode: Mode) -> miette::Result<Ends> {
        self.pods(mode, "far")
    }

    fn pods(&mut self, mode: Mode, server: &'static str) -> miette::Result<Ends> {
        let lab = self.lab(mode)?;
        let (client, server) = (
            Pod {
                lab: lab.clone(),
                name: "client",
            },
            Pod { lab, name: server },
        );
        let address = server.address()?;
        Ok((Station::Pod(client), Station::Pod(server), address))
    }

    fn lab(&mut self, mode: Mode) -> miette::Result<Rc<Lab>> {
        if let Some(lab) = self.raised.get(&mode) {
            return Ok(lab.clone());
        }
        let manifest = std::env::temp_dir().join(format!("podnet-bench-{}.yaml", std::process::id()));
        std::fs::write(&manifest, manifest_text())
            .into_diagnostic()
            .wrap_err("cannot write the manifest")?;
        let Mode { routing, dataplane } = mode;
        let name = format!("bench-{routing}-{dataplane}");
        let file = manifest.to_string_lossy().into_owned();
        let lab = Lab::up(
            &self.podnet,
            &name,
            &[
                &["--nodes", "2", "--routing", routing, "--dataplane", dataplane],
                &["-f", file.as_str()][..],
            ]
            .concat(),
        );
        let _ = std::fs::remove_file(&manifest);
        let lab = Rc::new(lab?);
        self.raised.insert(mode, lab.clone());
        Ok(lab)
    }
}

fn manifest_text() -> String {
    let pod = |(name, node): (&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{pod: {name}}}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: idle, image: host, command: [sleep, infinity]}}\n"
        )
    };
    let service = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: served}}\nspec:\n  clusterIP: {SERVICE}\n  \
         selector: {{pod: served}}\n  ports:\n  - {{port: {PORT}}}\n"
    );
    PODS.into_iter().map(pod).chain([service]).collect()
}

/// A pod, in which programs of this machine can be run.
pub(crate) struct Pod {
    lab: Rc<Lab>,
    name: &'static str,
}

impl Pod {
    /// `program` with its arguments to come, in this pod.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = lab(&self.lab.podnet, "exec", &self.lab.name);
        command.arg(self.name).arg("--").arg(program);
        command
    }

    fn address(&self) -> miette::Result<IpAddr> {
        let output = run(self
            .command(Path::new("ip"))
            .args(["-4", "-o", "addr", "show", "dev", "eth0", "scope", "global"]))?;
        address_in(&String::from_utf8_lossy(&output))
            .ok_or_else(|| miette!("pod {} of lab {} has no IPv4 address", self.name, self.lab.name))
    }
}

/// From `2: eth0    inet 10.244.0.3/32 scope global eth0 ...`.
fn address_in(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "inet");
    words.nth(1)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found() {
        let line =
            "2: eth0    inet 10.244.0.3/32 scope global eth0\\       valid_lft forever preferred_lft forever";
        assert_eq!(address_in(line), Some(IpAddr::from([10, 244, 0, 3])));
        assert_eq!(address_in(""), None);
    }

    #[test]
    fn the_manifest_has_a_document_per_pod() {
        assert_eq!(manifest_text().matches("kind: Pod").count(), PODS.len());
    }
}
