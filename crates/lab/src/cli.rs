//! `podnet lab`.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, value_parser};
use comfy_table::{Table, presets};
use ipnet::IpNet;
use miette::{IntoDiagnostic, miette};
use podnet_core::cluster::{DataplaneName, DataplaneNameError, IpvsScheduler, UnknownScheduler};
use serde::Serialize;

use crate::cluster::exec::{self, Exec};
use crate::cluster::launch::Interrupted;
use crate::cluster::layout::LabDir;
use crate::cluster::plan::{Datastore, IpFamily, LOOPBACK, LabName, MAX_NODES, Request, Routing, Switch};
use crate::cluster::record::{Lab, Record};
use crate::cluster::teardown::Removed;
use crate::cluster::{enter, launch, status, teardown};
use crate::image::Store;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Raise a cluster on this machine
    Up(Up),
    /// Run a command in a pod; its exit code is the command's
    Exec(ExecArgs),
    /// Run a command in a node's network, mount and UTS namespaces
    Node(Node),
    /// Load an image from an OCI or Docker archive
    Load(Load),
    /// How a lab is
    Status(Shown),
    /// Print the path of a kubeconfig that works from this machine
    Kubeconfig(Named),
    /// Print the logs of the lab's own processes
    Logs(Logs),
    /// End a lab and remove all of it
    Down(Down),
    /// All labs of this user
    List(Output),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The lab
    #[arg(long, default_value = "podnet")]
    name: LabName,
}

#[derive(Debug, clap::Args)]
struct Output {
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
struct Shown {
    #[command(flatten)]
    lab: Named,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Up {
    #[command(flatten)]
    lab: Named,
    /// How many nodes, from 1 to 100
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    nodes: u16,
    /// How many underlay subnets to spread them over
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    subnets: u16,
    /// How many zones to spread them over
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    zones: u16,
    /// The agents' data plane; auto is ebpf, and nftables where the lab may not have that (without root, or without control
    /// groups)
    #[arg(long, default_value = "auto", value_name = "auto|nftables|ebpf|ipvs|iptables|userspace", value_parser = dataplane)]
    dataplane: String,
    /// With --dataplane ipvs: how an endpoint is chosen for a new connection [default: rr]
    #[arg(long, value_name = "rr|wrr|lc|wlc|sh|mh", value_parser = ipvs_scheduler)]
    ipvs_scheduler: Option<String>,
    /// How pods' packets cross nodes
    #[arg(long, value_enum, default_value_t = Routing::Vxlan)]
    routing: Routing,
    /// With --routing vxlan: use the tunnel only between subnets
    #[arg(long)]
    cross_subnet: bool,
    /// Address families of pods and services
    #[arg(long, value_enum, default_value_t = IpFamily::Dual)]
    ip_family: IpFamily,
    /// What the API server stores its objects in
    #[arg(long, value_enum, default_value_t = Datastore::Memory)]
    datastore: Datastore,
    /// Port of the API server on this machine's loopback; a free one if not given
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Let pods and nodes reach the outside, and this machine's loopback at an address that is printed
    #[arg(long)]
    uplink: bool,
    /// Whether pods' packets leave the cluster with their node's address
    #[arg(long, value_enum, default_value_t = Switch::On)]
    masquerade: Switch,
    /// Destinations outside the cluster that pods reach with their own address (may be repeated)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    non_masquerade_cidr: Vec<IpNet>,
    /// Manifests to apply (may be repeated)
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How long to wait for the nodes and for the pods of -f: 500ms, 30s, 2m, 1h, or a number of seconds; 0 does not
    /// wait
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    lab: Named,
    /// The pod's namespace
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// The pod
    pod: String,
    /// The container, if the pod has several
    #[arg(long, short)]
    container: Option<String>,
    /// The command, after --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Node {
    #[command(flatten)]
    lab: Named,
    /// node1, node2, ..., or underlay: the network between them
    node: String,
    /// The command, after --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Load {
    #[command(flatten)]
    lab: Named,
    /// A tar archive: an OCI layout, or what `docker save` and `podman save` write
    archive: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Logs {
    #[command(flatten)]
    lab: Named,
    /// Only processes whose name begins so: apiserver, controller, uplink, node1-agent, node1-runtime, init
    process: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Down {
    #[command(flatten)]
    lab: Named,
    /// All labs of this user
    #[arg(long)]
    all: bool,
}

/// Runs one of the lab's subcommands.
pub fn run(args: Args) -> ExitCode {
    let outcome = match args.command {
        Command::Up(args) => up(args),
        Command::Exec(args) => exec_in_pod(&args),
        Command::Node(args) => {
            living(&args.lab.name).and_then(|(_, r)| enter::run(&r, &args.node, &args.command))
        }
        Command::Load(args) => load(&args),
        Command::Status(args) => show_status(&args),
        Command::Kubeconfig(args) => {
            living(&args.name).map(|(dir, _)| say(&dir.kubeconfig().display().to_string()))
        }
        Command::Logs(args) => logs(&args),
        Command::Down(args) => down(&args),
        Command::List(args) => list(args.output),
    };
    outcome.unwrap_or_else(|report| {
        eprintln!("{report:?}");
        match report.downcast_ref::<Interrupted>() {
            Some(interrupted) => ExitCode::from(interrupted.exit_code()),
            None => ExitCode::FAILURE,
        }
    })
}

/// Prints. A reader that has seen enough (`| head`) is no error.
fn say(line: &str) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
    ExitCode::SUCCESS
}

/// A lab that runs, or an error that says what there is instead.
fn living(name: &LabName) -> miette::Result<(LabDir, Record)> {
    let dir = LabDir::of(name);
    match Lab::find(&dir).into_diagnostic()? {
        Lab::Alive(record) => Ok((dir, *record)),
        Lab::Dead(_) => Err(miette!(
            help = format!(
                "remove what is left of it with `podnet lab down --name {name}`, then raise it again"
            ),
            "the lab {name} is dead: its processes have ended"
        )),
        Lab::None => {
            let others: Vec<String> = status::list()?
                .into_iter()
                .map(|lab| lab.name.to_string())
                .collect();
            let help = match others.is_empty() {
                true => format!("raise it with `podnet lab up --name {name}`"),
                false => format!("there are: {} (--name chooses)", others.join(", ")),
            };
            Err(miette!(help = help, "there is no lab named {name}"))
        }
    }
}

fn up(args: Up) -> miette::Result<ExitCode> {
    for (flag, value) in [("--subnets", args.subnets), ("--zones", args.zones)] {
        if value > args.nodes {
            eprintln!(
                "error: {flag} {value} is more than --nodes {}: a node is in one of each",
                args.nodes
            );
            return Ok(ExitCode::from(2));
        }
    }
    if args.routing == Routing::Direct && args.subnets > 1 {
        eprintln!(
            "error: --routing direct reaches only nodes on the same subnet; use --subnets 1 or --routing vxlan"
        );
        return Ok(ExitCode::from(2));
    }
    if args.cross_subnet && args.routing == Routing::Direct {
        eprintln!("error: --cross-subnet needs --routing vxlan: direct routes use no tunnel at all");
        return Ok(ExitCode::from(2));
    }
    if args.ipvs_scheduler.is_some() && args.dataplane != "ipvs" {
        eprintln!("error: --ipvs-scheduler needs --dataplane ipvs: no other data plane has schedulers");
        return Ok(ExitCode::from(2));
    }
    let request = Request {
        name: args.lab.name,
        nodes: args.nodes,
        subnets: args.subnets,
        zones: args.zones,
        dataplane: args.dataplane,
        ipvs_scheduler: args.ipvs_scheduler,
        routing: args.routing,
        cross_subnet: args.cross_subnet,
        ip_family: args.ip_family,
        datastore: args.datastore,
        api_port: args.api_port,
        uplink: args.uplink,
        masquerade: args.masquerade,
        non_masquerade_cidrs: args.non_masquerade_cidr,
    };
    let (name, nodes) = (request.name.clone(), request.nodes);
    let raised = launch::up(request, &args.files, args.wait)?;
    let plural = if nodes == 1 { "" } else { "s" };
    println!(
        "{name}: {nodes} node{plural} up in {:.2} s",
        raised.took.as_secs_f64()
    );
    println!("  export KUBECONFIG={}", raised.dir.kubeconfig().display());
    if args.uplink {
        println!("  {}", loopback(&LOOPBACK));
    }
    Ok(ExitCode::SUCCESS)
}

/// How the machine's loopback is reached from inside.
fn loopback(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!(
        "uplink: this machine's loopback is {} inside the lab",
        addresses.join(" and ")
    )
}

fn exec_in_pod(args: &ExecArgs) -> miette::Result<ExitCode> {
    let (dir, record) = living(&args.lab.name)?;
    let exec = Exec {
        namespace: &args.namespace,
        pod: &args.pod,
        container: args.container.as_deref(),
        command: &args.command,
    };
    block_on(exec::run(&dir, &record, &exec))
}

/// Runs `work`; does not wait for a thread that may be blocked reading the terminal.
fn block_on<T>(work: impl Future<Output = miette::Result<T>>) -> miette::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .into_diagnostic()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

fn load(args: &Load) -> miette::Result<ExitCode> {
    let (dir, _) = living(&args.lab.name)?;
    let store = Store::new(dir.images());
    // The error says its cause itself.
    let names = store.load(&args.archive).map_err(|error| miette!("{error}"))?;
    for name in names {
        println!("loaded {name}");
    }
    Ok(ExitCode::SUCCESS)
}

fn show_status(args: &Shown) -> miette::Result<ExitCode> {
    let (dir, record) = living(&args.lab.name)?;
    let status = block_on(status::status(&dir, &record))?;
    if args.output.output == Format::Json {
        return json(&status);
    }
    println!("lab {}, kubeconfig {}", status.name, status.kubeconfig);
    if !status.loopback.is_empty() {
        println!("{}", loopback(&status.loopback));
    }
    if let Some(error) = &status.api_error {
        println!("the API server cannot be asked: {error}");
    }
    let mut nodes = table(&["NODE", "READY", "ADDRESSES", "POD RANGES", "PODS RUNNING"]);
    for node in &status.nodes {
        let ready = match node.ready {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let pods = format!("{} of {}", node.pods.0, node.pods.1);
        nodes.add_row([
            &node.name,
            ready,
            &node.addresses.join(" "),
            &node.pod_cidrs.join(" "),
            &pods,
        ]);
    }
    let mut services = table(&["PROCESS", "PID IN LAB", "RESTARTS"]);
    for (name, state) in &status.services {
        let pid = state
            .pid
            .map_or_else(|| "starting again".to_owned(), |pid| pid.to_string());
        services.add_row([name, &pid, &state.restarts.to_string()]);
    }
    Ok(say(&format!("{nodes}\n\n{services}")))
}

fn list(format: Format) -> miette::Result<ExitCode> {
    let labs = status::list()?;
    if format == Format::Json {
        return json(&labs);
    }
    let mut rows = table(&["LAB", "STATE", "NODES", "DIRECTORY"]);
    for lab in &labs {
        let nodes = lab
            .nodes
            .map_or_else(|| "-".to_owned(), |nodes| nodes.to_string());
        rows.add_row([lab.name.as_str(), lab.state, &nodes, &lab.directory]);
    }
    Ok(say(&rows.to_string()))
}

fn logs(args: &Logs) -> miette::Result<ExitCode> {
    let dir = LabDir::of(&args.lab.name);
    if !dir.exists() {
        living(&args.lab.name)?;
    }
    let mut logs: Vec<PathBuf> = fs::read_dir(dir.logs())
        .into_diagnostic()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    logs.sort();
    let wanted = args.process.as_deref().unwrap_or_default();
    let mut found = false;
    for log in &logs {
        let name = log
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.starts_with(wanted) {
            found = true;
            // What was turned over stands before what came after it.
            print_log(name.strip_suffix(".0").unwrap_or(&name), log)?;
        }
    }
    if !found {
        return Err(miette!("the lab {} has no process {wanted}", args.lab.name));
    }
    Ok(ExitCode::SUCCESS)
}

fn print_log(name: &str, log: &Path) -> miette::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for line in String::from_utf8_lossy(&fs::read(log).into_diagnostic()?).lines() {
        // A reader that has seen enough (head) is no error.
        if writeln!(out, "{name} | {line}").is_err() {
            break;
        }
    }
    Ok(())
}

fn down(args: &Down) -> miette::Result<ExitCode> {
    let labs = if args.all {
        LabDir::all().into_diagnostic()?
    } else {
        vec![(args.lab.name.clone(), LabDir::of(&args.lab.name))]
    };
    let mut failed = false;
    for (name, dir) in labs {
        match teardown::remove(&dir) {
            Ok(Removed::Running) => println!("{name}: removed"),
            Ok(Removed::Remains) => println!("{name}: was dead; what it left is removed"),
            Ok(Removed::Nothing) => println!("{name}: there is no such lab"),
            Err(error) => {
                eprintln!("{name}: {error}");
                failed = true;
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn json(value: &impl Serialize) -> miette::Result<ExitCode> {
    Ok(say(&serde_json::to_string_pretty(value).into_diagnostic()?))
}

/// A data plane that the agents have, as it was written.
fn dataplane(text: &str) -> Result<String, DataplaneNameError> {
    text.parse::<DataplaneName>().map(|_| text.to_owned())
}

/// A scheduler that the agents know, as it was written.
fn ipvs_scheduler(text: &str) -> Result<String, UnknownScheduler> {
    text.parse::<IpvsScheduler>().map(|_| text.to_owned())
}

/// `90`, `90s`, `500ms`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let right = "write 500ms, 30s, 2m or 1h";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no duration; {right}"))?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("'{unit}' is no unit of time; {right}")),
    };
    // More would be past what clocks can count to.
    let total = number
        .checked_mul(milliseconds)
        .filter(|total| *total <= LONGEST_WAIT);
    total
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is longer than a year; {right}"))
}

/// A year, in milliseconds.
const LONGEST_WAIT: u64 = 365 * 24 * 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_kubernetes_writes_them() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("soon").is_err());
        assert!(duration("3 weeks").is_err());
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert!(
            duration("18446744073709551615h")
                .unwrap_err()
                .contains("longer than a year")
        );
        assert!(
            duration("99999999999999999999")
                .unwrap_err()
                .contains("no duration")
        );
    }
}
