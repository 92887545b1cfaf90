//! `podnet status`: what the agent of this node says of itself, of the paths to other nodes, and of services.
//!
//! Whoever connects to `status.sock` in the agent's run directory says in a line what it wants to know, and is answered
//! with one JSON document.

mod services;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use miette::{Context, IntoDiagnostic, miette};
use podnet_core::path::Report;
use podnet_core::service::ServiceState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::output;

pub use services::{FrontendStatus, ServicesStatus};

/// The socket's name in the run directory.
pub const SOCKET: &str = "status.sock";
/// The agent answers at once; one that does not is stuck.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line that is read.
const LONGEST_LINE: u64 = 64;

/// What the node loop has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Number of the state in force; none before the first.
    pub generation: Option<u64>,
    /// How packets get from node to node.
    pub routing: String,
    /// What carries services.
    #[serde(default)]
    pub dataplane: String,
    /// Largest packet of a new pod, in bytes.
    pub pod_mtu: Option<u32>,
    /// The tunnel's device may leave checksums to the hardware.
    pub checksum_offload: bool,
    /// Load balancers' addresses that this node answers for on the local network, by link.
    #[serde(default)]
    pub announces: BTreeMap<String, Vec<IpAddr>>,
    /// What has to be known before anything more can be decided.
    #[serde(default)]
    pub waiting: Option<String>,
    /// What could not be applied.
    pub failures: Vec<String>,
    /// Objects that are left out, and why.
    pub problems: Vec<String>,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The other node.
    pub peer: String,
    /// Its range.
    pub range: String,
    /// Its address among its pods.
    pub address: String,
    /// `tunnel` or `direct`.
    pub via: String,
    /// `reachable`, `unreachable`, `no agent` or `unknown`.
    pub reach: String,
    /// There and back.
    pub latency_ms: Option<f64>,
    /// Largest packet that passes, in bytes.
    pub mtu: Option<u32>,
    /// Largest that this node's link takes.
    pub link_mtu: u32,
    /// `right`, `wrong` or `unknown`.
    pub checksums: String,
    /// Probes that arrived changed although their checksums were right.
    pub corrupt: u64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// The paths to other nodes.
    pub paths: Vec<PathStatus>,
}

impl From<&Report> for PathStatus {
    fn from(report: &Report) -> Self {
        PathStatus {
            peer: report.key.peer.to_string(),
            range: report.key.range.to_string(),
            address: report.to.to_string(),
            via: if report.tunnel { "tunnel" } else { "direct" }.into(),
            reach: report.reach.to_string(),
            latency_ms: report.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            mtu: report.mtu,
            link_mtu: report.link_mtu,
            checksums: report.checksums.to_string(),
            corrupt: report.corrupt,
        }
    }
}

/// Where what is told comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The node loop.
    pub node: watch::Receiver<NodeStatus>,
    /// The probes.
    pub paths: watch::Receiver<Arc<Vec<Report>>>,
    /// Services in force.
    pub services: watch::Receiver<Arc<ServiceState>>,
}

impl Sources {
    fn answer(&self, question: &str) -> serde_json::Result<Vec<u8>> {
        let node = self.node.borrow().clone();
        let paths = || self.paths.borrow().iter().map(PathStatus::from).collect();
        match question {
            "" => serde_json::to_vec(&Status { node, paths: paths() }),
            question if question == What::Services.word() => {
                let state = self.services.borrow().clone();
                serde_json::to_vec(&ServicesStatus::of(node, &state))
            }
            other => serde_json::to_vec(&serde_json::json!({
                "error": format!("this agent does not know what {other:?} is: ask for nothing or for \"services\""),
            })),
        }
    }

    /// One question, one answer.
    async fn converse(&self, stream: tokio::net::UnixStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut question = String::new();
        let mut reader = tokio::io::BufReader::new(reader.take(LONGEST_LINE));
        reader.read_line(&mut question).await?;
        writer.write_all(&self.answer(question.trim())?).await?;
        writer.shutdown().await
    }
}

/// Answers until the task ends.
pub async fn serve(listener: UnixListener, sources: Sources) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let sources = sources.clone();
        tokio::spawn(async move {
            // Who asks and goes away, or does not listen, is no concern of ours.
            let _ = tokio::time::timeout(PATIENCE, sources.converse(stream)).await;
        });
    }
}

/// Listens in the run directory, in place of an agent that has ended.
pub fn listen(run_dir: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(run_dir)?;
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the agent's sockets are
    #[arg(long, default_value = "/run/podnet", value_name = "DIR", global = true)]
    run_dir: PathBuf,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table, global = true)]
    output: Format,
}

/// What more to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
enum What {
    /// What is in force on this node for every address of every service
    Services,
}

impl What {
    /// What the agent is asked.
    fn word(self) -> &'static str {
        match self {
            What::Services => "services",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Format {
    fn print(self, status: &(impl Serialize + std::fmt::Display)) -> miette::Result<()> {
        let text = match self {
            Format::Json => serde_json::to_string_pretty(status).into_diagnostic()? + "\n",
            Format::Table => status.to_string(),
        };
        output::print(&text).into_diagnostic()
    }
}

/// Asks the agent of this node and prints what it says.
pub fn run(args: Args) -> miette::Result<()> {
    match args.what {
        None => args.output.print(&ask::<Status>(&args.run_dir, "")?),
        Some(what @ What::Services) => args
            .output
            .print(&ask::<ServicesStatus>(&args.run_dir, what.word())?),
    }
}

fn ask<T: DeserializeOwned>(run_dir: &Path, question: &str) -> miette::Result<T> {
    let path = run_dir.join(SOCKET);
    let stream = UnixStream::connect(&path).map_err(|error| {
        miette!(
            help = "run it as root on a node whose `podnet agent` is running; --run-dir says where that has its sockets",
            "no agent answers at {}: {error}",
            path.display()
        )
    })?;
    let mut text = String::new();
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| writeln!(&stream, "{question}"))
        .and_then(|()| (&stream).read_to_string(&mut text))
        .into_diagnostic()
        .wrap_err("the agent does not answer")?;
    serde_json::from_str(&text)
        .into_diagnostic()
        .wrap_err("the agent's answer is not understood: is it of another version?")
}

/// Rows in columns, the first row being the header.
fn columns<const N: usize>(f: &mut std::fmt::Formatter<'_>, rows: &[[String; N]]) -> std::fmt::Result {
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}   "));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

impl std::fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NodeStatus {
            node,
            version,
            generation,
            routing,
            dataplane,
            pod_mtu,
            checksum_offload,
            announces,
            waiting,
            failures,
            problems,
        } = self;
        let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
        let applied = generation.is_some();
        let generation = or(
            generation.map(|number| format!("generation {number}")),
            "nothing applied yet",
        );
        let mtu = or(pod_mtu.map(|mtu| format!("{mtu} bytes")), "not known yet");
        let services = match dataplane.as_str() {
            // An agent of an older version does not say.
            "" => String::new(),
            dataplane => format!(", services by {dataplane}"),
        };
        writeln!(
            f,
            "node {node}: podnet {version}, {generation}, routing {routing}{services}, MTU of pods {mtu}"
        )?;
        // Before anything is applied, nothing is known of it.
        if !checksum_offload && applied {
            writeln!(
                f,
                "checksum offload of the tunnel is switched off, because checksums arrived wrong or by somebody else"
            )?;
        }
        for (link, addresses) in announces {
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            writeln!(f, "answers on {link} for {}", addresses.join(", "))?;
        }
        waiting
            .iter()
            .try_for_each(|what| writeln!(f, "waiting {what}; what is in force stays so"))?;
        failures
            .iter()
            .try_for_each(|failure| writeln!(f, "not applied: {failure}"))?;
        problems
            .iter()
            .try_for_each(|problem| writeln!(f, "left out: {problem}"))
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.node)?;
        if self.paths.is_empty() {
            return writeln!(f, "there is no path to another node");
        }
        let header = ["PEER", "RANGE", "VIA", "REACH", "LATENCY", "MTU", "CHECKSUMS"].map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(header)
            .chain(self.paths.iter().map(PathStatus::row))
            .collect();
        writeln!(f)?;
        columns(f, &rows)
    }
}

impl PathStatus {
    fn row(&self) -> [String; 7] {
        let latency = self
            .latency_ms
            .map_or_else(|| "-".into(), |ms| format!("{ms:.2} ms"));
        let mtu = match self.mtu {
            None => "-".into(),
            Some(mtu) if mtu < self.link_mtu => format!("{mtu} of {}", self.link_mtu),
            Some(mtu) => mtu.to_string(),
        };
        [
            self.peer.clone(),
            self.range.clone(),
            self.via.clone(),
            self.reach.clone(),
            latency,
            mtu,
            self.checksums.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_wrong_and_reads_what_it_writes() {
        let path = PathStatus {
            peer: "node2".into(),
            range: "10.244.1.0/24".into(),
            address: "10.244.1.0".into(),
            via: "tunnel".into(),
            reach: "reachable".into(),
            latency_ms: Some(0.1234),
            mtu: Some(1350),
            link_mtu: 1450,
            checksums: "right".into(),
            corrupt: 0,
        };
        let status = Status {
            node: NodeStatus {
                node: "node1".into(),
                version: "1".into(),
                generation: Some(4),
                routing: "vxlan".into(),
                dataplane: "nftables".into(),
                pod_mtu: Some(1450),
                checksum_offload: false,
                announces: [("eth0".to_owned(), vec![[192, 0, 2, 1].into()])].into(),
                waiting: Some("for pods".into()),
                failures: vec!["no".into()],
                problems: vec!["Node node9: odd".into()],
            },
            paths: vec![path],
        };
        let text = status.to_string();
        let expected = "node node1: podnet 1, generation 4, routing vxlan, services by nftables, MTU of pods 1450 \
            bytes\n\
            checksum offload of the tunnel is switched off, because checksums arrived wrong or by somebody else\n\
            answers on eth0 for 192.0.2.1\n\
            waiting for pods; what is in force stays so\n\
            not applied: no\n\
            left out: Node node9: odd\n\n\
            PEER    RANGE           VIA      REACH       LATENCY   MTU            CHECKSUMS\n\
            node2   10.244.1.0/24   tunnel   reachable   0.12 ms   1350 of 1450   right\n";
        assert_eq!(text, expected);
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
