//! Command line of the agent.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use miette::{IntoDiagnostic, WrapErr, miette};
use podnet_cni::WiringName;
use podnet_core::cluster::{ClusterConfig, DataplaneName, IpvsScheduler, NodeName, Routing, parse_range};
use podnet_core::path;
use podnet_core::service::ServiceState;
use podnet_dataplane::monitor::Monitor;
use podnet_dataplane::{Kernel, ebpf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::announce::Announcing;
use crate::blocks;
use crate::cni_server::{self, CniServerConfig, Readiness};
use crate::dropins;
use crate::health_checks::{self, Health};
use crate::host_ports::HostPorts;
use crate::metrics::{self, Metrics};
use crate::node::{NodeConfig, NodeLoop, Outlets};
use crate::orphans;
use crate::paths::{self, Paths};
use crate::pod_policies::PodPolicies;
use crate::proxy;
use crate::sysctls::AllowedSysctl;
use crate::{report, status};

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of this node's Node object
    #[arg(long)]
    node: NodeName,
    /// How to reach the Kubernetes API
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// What carries services: auto is ebpf; ebpf is nftables with programs in front of it that give sockets of the node and
    /// its pods an endpoint when they connect, and hand packets between pods on past the node's stack, as far as the kernel
    /// lets them; userspace, a process beside the agent, is for kernels that have nothing else
    #[arg(
        long,
        default_value = "auto",
        value_name = "auto|nftables|ebpf|ipvs|iptables|userspace"
    )]
    dataplane: DataplaneName,
    /// With --dataplane ipvs: how an endpoint is chosen for a new connection [default: rr]
    #[arg(long, value_name = "rr|wrr|lc|wlc|sh|mh")]
    ipvs_scheduler: Option<IpvsScheduler>,
    /// How packets get from node to node
    #[arg(long, default_value = "vxlan", value_name = "vxlan|direct")]
    routing: Routing,
    /// With --routing vxlan: use the tunnel only between subnets (CrossSubnet)
    #[arg(long)]
    cross_subnet: bool,
    /// Ranges of all pods' addresses, at most one per IP family
    #[arg(long, value_delimiter = ',', value_name = "CIDR,CIDR6", value_parser = parse_range)]
    cluster_cidr: Vec<IpNet>,
    /// Ranges of all services' addresses, at most one per IP family
    #[arg(long, value_delimiter = ',', value_name = "CIDR,CIDR6", value_parser = parse_range)]
    service_cidr: Vec<IpNet>,
    /// Which of the node's addresses have node ports and health check node ports [default: all, node ports not on loopback]
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...", value_parser = parse_range)]
    nodeport_addresses: Vec<IpNet>,
    /// How pods are wired: ptp, a veth pair each; netkit, the faster pair of Linux 6.7; auto, netkit where the kernel has
    /// it; bridge, all on the bridge cbr0
    #[arg(long, default_value = "ptp", value_name = "auto|ptp|netkit|bridge")]
    wiring: WiringName,
    /// Kernel settings that pods may ask for by annotation beside those that Kubernetes calls safe; a name may end with *
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    allowed_unsafe_sysctls: Vec<AllowedSysctl>,
    /// Whether what pods send beyond the cluster gets their node's address; off where the world knows the way to pods
    #[arg(long, default_value = "on", value_name = "on|off")]
    masquerade: Switch,
    /// Destinations beyond the cluster that see pods' own addresses all the same
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...", value_parser = parse_range)]
    non_masquerade_cidr: Vec<IpNet>,
    /// DNS servers for pods
    #[arg(long, value_delimiter = ',', value_name = "IP,IP6")]
    cluster_dns: Vec<IpAddr>,
    #[command(flatten)]
    paths: NodePaths,
    /// With --dataplane ebpf: the group of cgroup v2 that all processes of this node and its pods are in [default: the machine's root]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// The plugin to install [default: podnet-cni beside this executable]
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
    /// The link between nodes [default: the one that has the node's InternalIP]
    #[arg(long, value_name = "NAME")]
    underlay_interface: Option<String>,
    /// How often to probe the path to each other node (less often with more than 200 paths)
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    path_probe_interval: u64,
    /// Where to serve /metrics, /livez, /readyz and /healthz; "off" for nowhere
    #[arg(long, default_value = "127.0.0.1:9980", value_name = "ADDR:PORT|off")]
    metrics_address: MetricsAddress,
    /// Serve the metrics that kube-proxy has too under its names (kubeproxy_...) as well
    #[arg(long)]
    kube_proxy_metrics: bool,
}

/// Where podnet's files are on a node.
#[derive(Debug, clap::Args)]
pub struct NodePaths {
    /// Where the container runtime looks for CNI plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Where the container runtime looks for CNI configuration
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Where the settings of systemd-networkd and NetworkManager are, which are told to leave podnet's links alone
    #[arg(long, default_value = "/etc", value_name = "DIR")]
    pub(crate) host_etc: PathBuf,
    /// Address leases, which survive restarts
    #[arg(long, default_value = "/var/lib/podnet", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Sockets
    #[arg(long, default_value = "/run/podnet", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// Where the file system is mounted in which eBPF programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub(crate) bpffs: PathBuf,
}

impl NodePaths {
    /// Where the agent serves the CNI plugin.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("cni.sock")
    }

    /// Where programs are; by default they see all processes, and heed those of the node's and its pods' networks.
    pub(crate) fn programs(&self, group: Option<&Path>) -> ebpf::Site {
        ebpf::Site {
            cgroup: group.map(Path::to_owned),
            bpffs: self.bpffs.clone(),
            sizes: ebpf::Sizes::default(),
        }
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy)]
struct MetricsAddress(Option<SocketAddr>);

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(MetricsAddress(None));
        }
        let address = text
            .parse()
            .map_err(|_| "give an address and port such as 127.0.0.1:9980, or off".to_owned())?;
        Ok(MetricsAddress(Some(address)))
    }
}

/// Runs until told to stop.
pub fn run(args: Args) -> miette::Result<()> {
    // A second call finds one installed, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    args.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime
        .into_diagnostic()
        .wrap_err("cannot start the runtime")?
        .block_on(agent(args))
}

impl Args {
    fn check(&self) -> miette::Result<()> {
        for (flag, ranges) in [
            ("--cluster-cidr", &self.cluster_cidr),
            ("--service-cidr", &self.service_cidr),
        ] {
            let of = |six: bool| {
                ranges
                    .iter()
                    .filter(|range| range.addr().is_ipv6() == six)
                    .count()
            };
            if of(false) > 1 || of(true) > 1 {
                return Err(miette!(
                    help = "give one IPv4 and one IPv6 range at most",
                    "{flag}: two ranges of one family"
                ));
            }
        }
        if self.cross_subnet && self.routing == Routing::Direct {
            return Err(miette!(
                help =
                    "direct routes use no tunnel at all: leave --cross-subnet out, or take --routing vxlan",
                "--cross-subnet needs --routing vxlan"
            ));
        }
        let overlap = |a: &&IpNet| {
            self.service_cidr
                .iter()
                .any(|b| a.contains(&b.network()) || b.contains(&a.network()))
        };
        if let Some(range) = self.cluster_cidr.iter().find(overlap) {
            return Err(miette!(
                help = "pods and services need ranges of their own",
                "--cluster-cidr {range} overlaps --service-cidr"
            ));
        }
        Ok(())
    }

    /// Flags that were given and have no effect in this version.
    fn unused(&self) -> Vec<&'static str> {
        let scheduler = self
            .ipvs_scheduler
            .filter(|_| self.dataplane != DataplaneName::Ipvs);
        let group = self.cgroup_root.as_ref();
        let group = group.filter(|_| self.dataplane != DataplaneName::Ebpf);
        [
            ("--cgroup-root", group.is_some()),
            ("--ipvs-scheduler", scheduler.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, is_given)| is_given.then_some(flag))
        .collect()
    }

    /// The destinations that are not masqueraded; none when nothing is.
    fn masquerade(&self) -> Option<Vec<IpNet>> {
        (self.masquerade == Switch::On).then(|| self.non_masquerade_cidr.iter().map(IpNet::trunc).collect())
    }

    fn metrics(&self, paths: &Paths, in_force: watch::Receiver<Arc<ServiceState>>) -> Arc<Metrics> {
        let metrics = Metrics::new(in_force).with_paths(paths.reports.clone());
        Arc::new(if self.kube_proxy_metrics {
            metrics.with_kube_proxys_names()
        } else {
            metrics
        })
    }

    fn plugin(&self) -> miette::Result<PathBuf> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("podnet-cni"));
        let plugin = self
            .cni_plugin
            .clone()
            .or_else(beside)
            .unwrap_or_else(|| "podnet-cni".into());
        if plugin.is_file() {
            return Ok(plugin);
        }
        Err(miette!(
            help = "put podnet-cni beside the podnet executable, or name it with --cni-plugin",
            "there is no CNI plugin at {}",
            plugin.display()
        ))
    }
}

/// The API's client, and its URL for messages. Nothing is asked of the server yet.
pub(crate) async fn client(path: &Path) -> miette::Result<(kube::Client, String)> {
    // These errors say their causes themselves.
    let broken = |error: &dyn std::fmt::Display| {
        miette!(
            help = "name a kubeconfig that works with --kubeconfig FILE",
            "cannot use the kubeconfig {}: {error}",
            path.display()
        )
    };
    let config = Kubeconfig::read_from(path).map_err(|error| match error {
        KubeconfigError::ReadConfig(why, _) => broken(&why),
        other => broken(&other),
    })?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await;
    let mut config = config.map_err(|error| broken(&error))?;
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    let url = config.cluster_url.to_string();
    let client = kube::Client::try_from(config).map_err(|error| broken(&error))?;
    Ok((client, url))
}

async fn agent(args: Args) -> miette::Result<()> {
    for flag in args.unused() {
        tracing::warn!(
            "{flag} has no effect: the data plane {} does not need it",
            args.dataplane
        );
    }
    let plugin = args.plugin()?;
    let (client, url) = client(&args.kubeconfig).await?;
    let kernel = Kernel::open(args.underlay_interface.clone(), args.dataplane);
    let mut kernel = kernel
        .and_then(|kernel| kernel.with_proxy(proxy::site(&args.paths.run_dir)))
        .and_then(|kernel| kernel.with_programs(args.paths.programs(args.cgroup_root.as_deref())))
        .and_then(|kernel| kernel.with_scheduler(args.ipvs_scheduler.unwrap_or_default()))
        .into_diagnostic()
        .wrap_err("cannot talk to the kernel's network: is CAP_NET_ADMIN there?")?;
    // Not before it is sure that this agent can start: a mistyped call changes nothing on the machine.
    leave_us_alone(&args.paths.host_etc);
    kernel
        .keep_settings_in(&args.paths.state_dir.join(crate::cleanup::SETTINGS))
        .into_diagnostic()
        .wrap_err("the node's settings could not be put back later")?;
    std::fs::create_dir_all(&args.paths.run_dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make {}", args.paths.run_dir.display()))?;
    kernel.take_turns_in(&args.paths.run_dir).into_diagnostic()?;
    let cni = CniServerConfig {
        socket: args.paths.socket(),
        state_dir: args.paths.state_dir.clone(),
        node: args.node.to_string(),
        wiring: args.wiring,
        allowed_sysctls: args.allowed_unsafe_sysctls.clone(),
        settings: kernel.settings(),
        programs: (args.dataplane == DataplaneName::Ebpf).then(|| args.paths.programs(None)),
    };
    let not_yet = Readiness::NotReady("the agent has not seen the cluster yet".into());
    let (readiness, ready) = watch::channel(not_yet);
    let paths = Paths::start(path::Settings {
        interval: std::time::Duration::from_secs(args.path_probe_interval),
        ..path::Settings::default()
    });
    let paths = paths.into_diagnostic().wrap_err("cannot start a thread")?;
    let announcing = Announcing::start(args.node.clone(), args.underlay_interface.clone());
    let announcing = announcing
        .into_diagnostic()
        .wrap_err("cannot announce load balancers' addresses")?;
    let (services, in_force) = watch::channel(Default::default());
    let metrics = args.metrics(&paths, in_force.clone());
    let mut tasks = JoinSet::new();
    serve_metrics(&args, &metrics, &ready, &mut tasks).await;
    tracing::info!(node = %args.node, api = url, routing = %args.routing, "podnet agent");

    let (updates, changes) = mpsc::unbounded_channel();
    crate::watch::start(&client, updates, &mut tasks);
    let (health, asked) = watch::channel(Health::default());
    tasks.spawn(health_checks::run(asked));
    let (problems, reported) = watch::channel(Default::default());
    tasks.spawn(report::publish(client.clone(), args.node.clone(), reported));
    let (repairs, repaired) = watch::channel(None);
    tasks.spawn(report::repairs(client.clone(), args.node.clone(), repaired));
    tasks.spawn(report::announced(
        client.clone(),
        args.node.clone(),
        announcing.spoken.clone(),
        in_force.clone(),
        Arc::clone(&metrics),
    ));
    let reports = paths.reports.clone();
    tasks.spawn(paths::report::publish(
        client.clone(),
        args.node.clone(),
        reports.clone(),
    ));
    // The only task that ends by itself.
    tokio::spawn(greet(client.clone(), url, args.kubeconfig.clone()));
    // It listens before the loop can install the plugin's configuration.
    let host_ports = Arc::new(HostPorts::default());
    let pod_policies = Arc::new(PodPolicies::new(args.dataplane == DataplaneName::Ebpf));
    let shared = (host_ports, pod_policies);
    let server = cni_server::bind(cni.clone(), ready.clone(), shared.clone())
        .await
        .into_diagnostic()
        .wrap_err("cannot serve the CNI plugin")?;
    metrics.watch(server.leases());
    tasks.spawn(orphans::run(client.clone(), server.reclaimer()));
    tasks.spawn(blocks::run(client, args.node.clone(), server.leases(), ready));
    // A task of its own: requests are accepted while the loop waits for the kernel.
    tasks.spawn(server.run());
    let status = status::listen(&args.paths.run_dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot listen in {}", args.paths.run_dir.display()))?;
    let masquerade = args.masquerade();
    let config = NodeConfig {
        name: args.node,
        cluster: ClusterConfig {
            masquerade,
            cluster_cidrs: args.cluster_cidr,
            service_cidrs: args.service_cidr,
            node_port_addresses: Some(args.nodeport_addresses).filter(|ranges| !ranges.is_empty()),
            routing: args.routing,
            cross_subnet: args.cross_subnet,
            // Nothing serves the names yet.
            dns: None,
        },
        dns: args.cluster_dns,
        cni_bin_dir: args.paths.cni_bin_dir,
        cni_conf_dir: args.paths.cni_conf_dir,
        cni,
        plugin,
    };
    let disturbed = disturbances(kernel.monitor());
    let out = Outlets {
        metrics,
        readiness,
        problems,
        health,
        services,
        repairs,
    };
    let node = NodeLoop::new(config, kernel, shared, out)
        .probing(paths)
        .announcing(announcing);
    let sources = status::Sources {
        node: node.status(),
        paths: reports,
        services: in_force,
    };
    tasks.spawn(status::serve(status, sources));
    let (mut interrupt, mut terminate) = (
        stopped(SignalKind::interrupt())?,
        stopped(SignalKind::terminate())?,
    );
    tokio::select! {
        () = node.run(changes, disturbed) => Err(miette!("the watches ended")),
        error = failure(&mut tasks) => Err(error),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
    // What runs goes on: nothing is taken down. `podnet cleanup` does that.
}

/// A network manager that cannot be told may still leave our links alone.
fn leave_us_alone(etc: &Path) {
    match dropins::install(etc) {
        Ok(written) => written
            .iter()
            .for_each(|path| tracing::info!(path = %path.display(), "told a network manager to leave podnet's links alone")),
        Err(error) => tracing::warn!("a network manager may take podnet's links down: {error}"),
    }
}

/// Waits until one of the agent's tasks ends: each is to run as long as the agent. Without it the agent would go on with
/// old objects and not know it; what supervises the agent starts it again.
async fn failure(tasks: &mut JoinSet<()>) -> miette::Report {
    let help = "start the agent again; the log has the cause";
    match tasks.join_next().await {
        Some(Ok(())) => miette!(
            help = help,
            "a task of the agent ended that runs as long as the agent"
        ),
        Some(Err(error)) => miette!(help = help, "a task of the agent failed: {error}"),
        None => std::future::pending().await,
    }
}

fn stopped(kind: SignalKind) -> miette::Result<tokio::signal::unix::Signal> {
    signal(kind).into_diagnostic().wrap_err("cannot wait for signals")
}

async fn serve_metrics(
    args: &Args,
    metrics: &Arc<Metrics>,
    ready: &watch::Receiver<Readiness>,
    tasks: &mut JoinSet<()>,
) {
    let Some(address) = args.metrics_address.0 else {
        return;
    };
    match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => _ = tasks.spawn(metrics::serve(listener, metrics.clone(), ready.clone())),
        // The network is worth more than its figures.
        Err(error) => {
            tracing::warn!("no metrics: cannot listen on {address}: {error}; see --metrics-address")
        }
    }
}

/// Says at the start whether the API server is there, and if not, what to look at. The watches go on asking.
async fn greet(client: kube::Client, url: String, kubeconfig: PathBuf) {
    match client.apiserver_version().await {
        Ok(version) => tracing::info!(version = version.git_version, "the API server is there"),
        Err(error) => tracing::warn!(
            "cannot reach the API server at {url} (from {}): {}; trying again. Check that it runs, and that this node \
             reaches that address. What is in the kernel stays in force meanwhile",
            kubeconfig.display(),
            causes(&error)
        ),
    }
}

/// An error with all its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = chain.map(ToString::to_string).collect();
    // Many errors repeat their cause's text.
    texts.dedup_by(|cause, outer| outer.contains(cause.as_str()));
    texts.join(": ")
}

/// Tells when somebody changed what is ours in the kernel.
fn disturbances(monitor: std::io::Result<Monitor>) -> mpsc::Receiver<()> {
    let (tell, disturbed) = mpsc::channel(1);
    let watch = move || -> std::io::Result<()> {
        let mut monitor = monitor?;
        loop {
            monitor.wait()?;
            // Full means that it is told already.
            let told = tell.try_send(());
            if let Err(mpsc::error::TrySendError::Closed(())) = told {
                return Ok(());
            }
        }
    };
    // A thread of its own: it blocks, and ends with the process.
    let spawned = std::thread::Builder::new().name("monitor".into()).spawn(move || {
        if let Err(error) = watch() {
            tracing::warn!("cannot see others' changes at once, only every 30 seconds: {error}");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("cannot start a thread: {error}");
    }
    disturbed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_or_ends_is_noticed() {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        tasks.spawn(async { panic!("a bug") });
        let error = failure(&mut tasks).await;
        assert!(error.to_string().contains("a bug"), "{error}");
        tasks.spawn(async {});
        let error = failure(&mut tasks).await;
        assert!(error.to_string().contains("ended"), "{error}");
    }
}
