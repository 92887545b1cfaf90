//! Command line of the controllers.

use std::future::Future;
use std::path::PathBuf;

use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use miette::{IntoDiagnostic, miette};
use tokio::signal::unix::{SignalKind, signal};

use crate::control::Controller;
use crate::deployment::Deployments;
use crate::drive::drive;
use crate::election::Election;
use crate::endpoints::{EndpointSlices, LegacyEndpoints, MirroredEndpoints};
use crate::engine::Engine;
use crate::garbage::GarbageCollector;
use crate::ip_pools::IpPools;
use crate::load_balancers::LoadBalancers;
use crate::namespace::Namespaces;
use crate::node_lifecycle::NodeLifecycle;
use crate::node_ranges::{NodeRanges, Pool};
use crate::pod_gc::PodCollector;
use crate::replicaset::ReplicaSets;
use crate::scheduler::Scheduler;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to reach the API server; by default as kubectl would, or as a pod does
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Which controllers to run, or `all`. A real cluster brings its own but for pools and, perhaps, node
    /// ranges
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "node-ranges,ip-pools,load-balancers", value_parser = NAMES)]
    controllers: Vec<String>,

    /// Ranges that nodes get theirs from: one, or one of each family
    #[arg(
        long,
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ',',
        value_parser = podnet_core::cluster::parse_range,
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNet>,

    /// Ranges of all services' cluster IPs: no pool of load balancers' addresses may overlap them
    #[arg(
        long,
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ',',
        value_parser = podnet_core::cluster::parse_range
    )]
    service_cidr: Vec<IpNet>,

    /// Prefix length of a node's IPv4 range
    #[arg(long, value_name = "LENGTH", default_value_t = 24)]
    node_cidr_mask_size: u8,

    /// Prefix length of a node's IPv6 range
    #[arg(long, value_name = "LENGTH", default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,

    /// Seconds before the ranges and blocks of a node that was deleted are given to another: its pods may still run
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    node_range_grace: u32,

    /// Whether to run only while holding a lease, so that one of several is at work
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,

    /// Namespace of that lease
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    leader_elect_namespace: String,

    /// Name of that lease
    #[arg(long, value_name = "NAME", default_value = "podnet-controller")]
    leader_elect_lease: String,
}

const NAMES: [&str; 14] = [
    "all",
    "node-ranges",
    "ip-pools",
    "load-balancers",
    "replicaset",
    "deployment",
    "scheduler",
    "endpointslice",
    "endpoints",
    "endpointslice-mirroring",
    "namespace",
    "garbage-collector",
    "node-lifecycle",
    "pod-gc",
];

/// Runs until told to stop.
pub fn run(args: Args) -> miette::Result<()> {
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let controllers = chosen(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.into_diagnostic()?.block_on(serve(args, controllers))
}

/// The controllers that the arguments ask for.
fn chosen(args: &Args) -> miette::Result<Vec<Box<dyn Controller>>> {
    let pools = Pool::parse(
        &args.cluster_cidr,
        args.node_cidr_mask_size,
        args.node_cidr_mask_size_ipv6,
    )?;
    let all: Vec<Box<dyn Controller>> = vec![
        Box::new(NodeRanges::new(
            pools,
            &args.leader_elect_namespace,
            args.node_range_grace,
        )),
        Box::new(IpPools::new(args.cluster_cidr.clone(), args.node_range_grace)),
        Box::new(LoadBalancers::new(
            args.cluster_cidr.clone(),
            args.service_cidr.clone(),
        )),
        Box::new(Deployments),
        Box::new(ReplicaSets),
        Box::new(Scheduler),
        Box::new(EndpointSlices),
        Box::new(LegacyEndpoints),
        Box::new(MirroredEndpoints),
        Box::new(Namespaces),
        Box::new(GarbageCollector),
        Box::new(NodeLifecycle),
        Box::new(PodCollector),
    ];
    let wanted = |name: &str| args.controllers.iter().any(|c| c == "all" || c == name);
    Ok(all
        .into_iter()
        .filter(|controller| wanted(controller.name()))
        .collect())
}

/// Says at the start if the API server is not there, and what to look at. The watches go on asking.
async fn greet(client: Client, server: String) {
    if let Err(error) = client.apiserver_version().await {
        tracing::warn!("cannot reach the API server {server}: {error}; trying again. Check that it runs");
    }
}

async fn serve(args: Args, controllers: Vec<Box<dyn Controller>>) -> miette::Result<()> {
    let (client, server) = connect(args.kubeconfig.as_deref()).await?;
    let stop = stop()?;
    let names: Vec<_> = controllers.iter().map(|c| c.name()).collect();
    tracing::info!(controllers = names.join(","), "starts");
    tokio::spawn(greet(client.clone(), server));
    let engine = Engine::new(controllers);
    if !args.leader_elect {
        return drive(client, engine, stop).await.into_diagnostic();
    }
    let name = identity();
    let mut election = Election::new(
        client.clone(),
        &args.leader_elect_namespace,
        &args.leader_elect_lease,
        &name,
    );
    let mut stop = std::pin::pin!(stop);
    tokio::select! {
        () = election.won() => tracing::info!(lease = args.leader_elect_lease, name, "leads"),
        () = &mut stop => return Ok(()),
    }
    let ended = tokio::select! {
        ended = drive(client, engine, &mut stop) => Some(ended),
        () = election.lost() => None,
    };
    let Some(ended) = ended else {
        // What is half done is finished by the next leader, or by this process when it is started again.
        return Err(miette!(
            help = "it is started again by what started it; if this repeats, the API server is slow or unreachable",
            "the lease {}/{} could not be renewed",
            args.leader_elect_namespace,
            args.leader_elect_lease
        ));
    };
    // Whatever ended this one, another may lead at once.
    election.release().await;
    ended.into_diagnostic()
}

/// A client, and where it will find the API server: the URL and the file that names it.
async fn connect(kubeconfig: Option<&std::path::Path>) -> miette::Result<(Client, String)> {
    let no_way = |error: &dyn std::fmt::Display| {
        miette!(
            help = "name a kubeconfig with --kubeconfig FILE",
            "no way to reach an API server: {error}"
        )
    };
    // These errors say their causes themselves.
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| match error {
                KubeconfigError::ReadConfig(why, _) => no_way(&format!("{}: {why}", path.display())),
                other => no_way(&format!("{}: {other}", path.display())),
            })?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| no_way(&format!("{}: {error}", path.display())))?
        }
        None => Config::infer().await.map_err(|error| no_way(&error))?,
    };
    let source = kubeconfig.map_or_else(|| "the environment".to_owned(), |path| path.display().to_string());
    let server = format!("at {} (from {source})", config.cluster_url);
    Ok((Client::try_from(config).into_diagnostic()?, server))
}

/// Resolves on the first SIGTERM or SIGINT.
fn stop() -> miette::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Unique even among processes of one host, since containers of it may share the host's name and process ids.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), uuid::Uuid::new_v4())
}
