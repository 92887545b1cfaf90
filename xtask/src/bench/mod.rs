//! `bench`: what podnet costs, as ratios to what the kernel does without it, measured in one run.
//!
//! A *path* is a client and a server somewhere and the way between them; a *station* is where one of them runs. To
//! add a row, make a path and name what it is compared with.

mod api_services;
mod bare;
mod dns;
mod example;
mod lab;
mod peers;
mod plugin;
mod report;
mod services;
pub(crate) mod verbs;

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use miette::{Context, IntoDiagnostic, miette};

use crate::netperf::{Sample, Test};
use crate::recipe;
use report::{Report, Series, UpTimes};

const PORT: u16 = 5201;

/// Measures podnet against what the kernel can do without it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs per figure, interleaved; the median is reported
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=101))]
    runs: u16,
    /// Seconds per run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The CPU that clients and servers share (default: the last one)
    #[arg(long)]
    cpu: Option<usize>,
    /// How often to measure `podnet lab up`; 0 leaves it out
    #[arg(long, default_value_t = 5)]
    up_runs: u16,
    /// How often to time ADD and DEL; 0 leaves it out
    #[arg(long, default_value_t = 30)]
    verb_runs: u16,
    /// Only this ("up", "verbs", "dns", "peers", "services", "api_services" or "plugin"), or only paths whose name
    /// contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The executable to measure (default: the release build)
    #[arg(long, default_value_os_t = recipe::release().join("podnet"), hide_default_value = true)]
    podnet: PathBuf,
    /// Where to write the JSON
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
}

/// Where a client or a server runs.
pub(crate) enum Station {
    /// The network namespace of a process of ours.
    Namespace(bare::Namespace),
    /// A pod of a lab.
    Pod(lab::Pod),
}

impl Station {
    /// `program` with its arguments to come, to be run there.
    fn command(&self, program: &std::path::Path) -> Command {
        match self {
            Station::Namespace(namespace) => namespace.command(program),
            Station::Pod(pod) => pod.command(program),
        }
    }
}

/// A way from a client to a server.
pub(crate) struct Path {
    name: &'static str,
    /// The path that is its measure.
    against: Option<&'static str>,
    client: Station,
    server: Station,
    address: IpAddr,
}

/// Measures, prints and writes.
pub(crate) fn run(args: Args) -> miette::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(miette!(
            help = "run it as root",
            "the benchmark makes network namespaces of its own"
        ));
    }
    let cpu = args.cpu.map_or_else(last_cpu, Ok)?;
    let wanted = |name: &str| match BESIDE_PATHS.contains(&args.only.as_str()) {
        true => name == args.only,
        false => name.contains(&args.only),
    };
    let up = (wanted("up") && args.up_runs > 0)
        .then(|| lab::up_times(&args.podnet, args.up_runs))
        .transpose()?;
    let verbs = (wanted("verbs") && args.verb_runs > 0)
        .then(|| lab::verb_times(&args.podnet, args.verb_runs))
        .transpose()?;
    let dns = wanted("dns")
        .then(|| dns::measure(cpu, args.seconds))
        .transpose()?;
    let peers = wanted("peers").then(|| peers::measure(cpu)).transpose()?;
    let services = wanted("services").then(|| services::measure(cpu)).transpose()?;
    let api_services = wanted("api_services")
        .then(|| api_services::measure(&args.podnet, cpu))
        .transpose()?;
    let plugin = wanted("plugin")
        .then(|| plugin::measure(&args.podnet))
        .transpose()?;
    let paths = PATHS.into_iter().filter(|name| wanted(name));
    let mut series = Vec::new();
    // What is set up for the paths goes when this goes.
    let setups = setups(&args, paths.collect())?;
    let servers = setups
        .iter()
        .map(|path| Server::start(path, cpu))
        .collect::<miette::Result<Vec<_>>>()?;
    for path in &setups {
        series.push(Series::new(path.name, path.against));
    }
    for round in 1..=args.runs {
        eprintln!("run {round} of {}", args.runs);
        for (path, series) in setups.iter().zip(&mut series) {
            for test in Test::ALL {
                series.add(test, measure(path, test, cpu, args.seconds)?);
            }
        }
    }
    drop(servers);
    let report = Report {
        cpu,
        runs: args.runs,
        seconds: args.seconds,
        up,
        verbs,
        dns,
        peers,
        services,
        api_services,
        plugin,
        paths: series,
    };
    println!("{report}");
    let written = report.write(&args.out)?;
    println!("written to {}", written.display());
    Ok(())
}

/// What is measured beside the paths, by name.
const BESIDE_PATHS: [&str; 7] = [
    "up",
    "verbs",
    "dns",
    "peers",
    "services",
    "api_services",
    "plugin",
];

/// The rows, in the order of the table.
const PATHS: [&str; 14] = [
    "one node: veth pair",
    "one node: kernel routing",
    "one node: kernel routing, tracked",
    "one node: podnet",
    "one node: podnet service",
    "one node: podnet ebpf",
    "one node: podnet ebpf service",
    "one node: service as kube-proxy",
    "two nodes: kernel routing",
    "two nodes: podnet direct",
    "two nodes: podnet ebpf direct",
    "two nodes: kernel VXLAN",
    "two nodes: podnet vxlan",
    "two nodes: podnet ebpf vxlan",
];

const DIRECT: lab::Mode = lab::Mode::new("direct", "nftables");
const EBPF_DIRECT: lab::Mode = lab::Mode::new("direct", "ebpf");

fn setups(args: &Args, names: Vec<&'static str>) -> miette::Result<Vec<Path>> {
    let mut labs = lab::Labs::new(&args.podnet);
    let mut paths = Vec::new();
    for name in names {
        let (against, (client, server, address)) = match name {
            "one node: veth pair" => (None, bare::pair()?),
            "one node: kernel routing" => (Some("one node: veth pair"), bare::one_node()?),
            "one node: kernel routing, tracked" => (
                Some("one node: veth pair"),
                bare::one_node_with(bare::Rules::Tracking)?,
            ),
            "one node: podnet" => (Some("one node: veth pair"), labs.one_node(DIRECT)?),
            "one node: podnet service" => (Some("one node: podnet"), labs.service(DIRECT)?),
            "one node: podnet ebpf" => (Some("one node: veth pair"), labs.one_node(EBPF_DIRECT)?),
            "one node: podnet ebpf service" => (Some("one node: podnet ebpf"), labs.service(EBPF_DIRECT)?),
            "one node: service as kube-proxy" => (
                Some("one node: kernel routing, tracked"),
                bare::one_node_with(bare::Rules::KubeProxy)?,
            ),
            "two nodes: kernel routing" => (None, bare::two_nodes(bare::Between::Routes)?),
            "two nodes: podnet direct" => (Some("two nodes: kernel routing"), labs.two_nodes(DIRECT)?),
            "two nodes: podnet ebpf direct" => {
                (Some("two nodes: kernel routing"), labs.two_nodes(EBPF_DIRECT)?)
            }
            "two nodes: kernel VXLAN" => (None, bare::two_nodes(bare::Between::Vxlan)?),
            "two nodes: podnet ebpf vxlan" => (
                Some("two nodes: kernel VXLAN"),
                labs.two_nodes(lab::Mode::new("vxlan", "ebpf"))?,
            ),
            _ => (
                Some("two nodes: kernel VXLAN"),
                labs.two_nodes(lab::Mode::new("vxlan", "nftables"))?,
            ),
        };
        paths.push(Path {
            name,
            against,
            client,
            server,
            address,
        });
    }
    Ok(paths)
}

fn last_cpu() -> miette::Result<usize> {
    let cpus = std::thread::available_parallelism()
        .into_diagnostic()
        .wrap_err("cannot count the CPUs")?;
    Ok(cpus.get() - 1)
}

fn own_executable() -> miette::Result<PathBuf> {
    std::env::current_exe()
        .into_diagnostic()
        .wrap_err("cannot find the executable of xtask")
}

/// A server that ends with this value.
struct Server(Child);

impl Server {
    fn start(path: &Path, cpu: usize) -> miette::Result<Self> {
        let any = match path.address {
            IpAddr::V4(_) => "0.0.0.0",
            IpAddr::V6(_) => "[::]",
        };
        let mut command = path.server.command(&own_executable()?);
        command.args([
            "netperf",
            "server",
            "--listen",
            &format!("{any}:{PORT}"),
            "--cpu",
            &cpu.to_string(),
        ]);
        // An input that ends with us, for those who pass it on.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .into_diagnostic()
            .wrap_err_with(|| format!("no server for {}", path.name))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).into_diagnostic()?;
        }
        let server = Server(child);
        if line.trim() == "ready" {
            Ok(server)
        } else {
            Err(miette!("the server for {} did not start", path.name))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one test on one path.
fn measure(path: &Path, test: Test, cpu: usize, seconds: f64) -> miette::Result<Sample> {
    let before = softirq_time(cpu);
    let mut sample = run_client(path, test, cpu, seconds)?;
    sample.cpu_seconds += softirq_time(cpu) - before;
    Ok(sample)
}

/// CPU seconds of the kernel thread that takes over network work when a CPU has too much of it; none where it cannot
/// be seen.
fn softirq_time(cpu: usize) -> f64 {
    let name = format!("ksoftirqd/{cpu}\n");
    let threads = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut named = threads
        .map(|entry| entry.path())
        .filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name));
    let times = named
        .next()
        .and_then(|path| std::fs::read_to_string(path.join("schedstat")).ok());
    let nanoseconds = times.and_then(|times| times.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

fn run_client(path: &Path, test: Test, cpu: usize, seconds: f64) -> miette::Result<Sample> {
    let mut command = path.client.command(&own_executable()?);
    let server = SocketAddr::new(path.address, PORT).to_string();
    command.args([
        "netperf",
        "client",
        "--connect",
        &server,
        "--cpu",
        &cpu.to_string(),
    ]);
    command.args(["--seconds", &seconds.to_string(), "--test", test.name()]);
    let output = command.stdin(Stdio::null()).output().into_diagnostic()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(miette!("{}: the test {} failed: {said}", path.name, test.name()));
    }
    serde_json::from_slice(&output.stdout)
        .into_diagnostic()
        .wrap_err_with(|| {
            format!(
                "{}: the client said {:?}",
                path.name,
                String::from_utf8_lossy(&output.stdout)
            )
        })
}
