//! Command line of the runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{IntoDiagnostic, WrapErr};
use podnet_linux::ns::Namespace;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::cni::conf::NetworkList;
use super::cni::{CniError, Network, Plugins};
use super::containers::Registry;
use super::events::Events;
use super::host::Host;
use super::node::{Machine, NodeApi, NodeFacts, heartbeat, watch_directory};
use super::objects::Objects;
use super::pod::files::ClusterDns;
use super::{pods, streaming};
use crate::image::Store;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    #[arg(long)]
    node: String,
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The node's addresses, the primary family first
    #[arg(long, value_delimiter = ',', required = true)]
    node_ip: Vec<IpAddr>,
    /// The lab's directory
    #[arg(long)]
    lab_dir: PathBuf,
    /// The node's mount namespace, in which network plugins run
    #[arg(long)]
    node_mount_ns: PathBuf,
    /// Where to serve the kubelet API
    #[arg(long)]
    kubelet_socket: PathBuf,
    /// Addresses of the cluster's name servers
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// A label of the node
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    node_labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    if key.is_empty() {
        return Err("a label has a key".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs until told to stop. The pods go on.
pub fn run(args: Args) -> miette::Result<()> {
    // The first provider stays; a second call in one process changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .into_diagnostic()?
        .block_on(serve(args))
}

async fn serve(args: Args) -> miette::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    let client = client(&args.kubeconfig).await?;
    let machine = Machine::read();
    let facts = NodeFacts {
        name: args.node.clone(),
        ips: args.node_ip.clone(),
        labels: args.node_labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        machine: machine.clone(),
    };
    let node_dir = args.lab_dir.join("nodes").join(&args.node);
    let (network_sender, network_ready) = watch::channel(Err("cni plugin not initialized".to_owned()));
    let (images_sender, images_changed) = watch::channel(0);
    let host = Arc::new(host(
        &args,
        &client,
        &machine,
        &node_dir,
        network_ready.clone(),
        images_changed,
    )?);
    let listener = listen(&args.kubelet_socket)?;
    let images = args.lab_dir.join("images");
    tracing::info!(node = args.node, "the runtime of the node starts");
    let mut tasks = tokio::task::JoinSet::new();
    let net_d = host.network.conf_dir.clone();
    tasks.spawn(async move {
        (
            "watching net.d",
            watch_directory(&net_d, network_sender, network_state).await,
        )
    });
    tasks.spawn(async move {
        (
            "watching the images",
            watch_directory(&images, images_sender, fingerprint).await,
        )
    });
    tasks.spawn(async move {
        heartbeat(NodeApi::new(&client, facts), network_ready).await;
        ("keeping the node's lease", Ok(()))
    });
    let containers: Arc<dyn streaming::Containers> = Arc::clone(&host.registry) as _;
    tasks.spawn(async move {
        streaming::serve(listener, containers).await;
        ("serving the kubelet API", Ok(()))
    });
    tasks.spawn(async move { ("following the node's pods", pods::follow(host).await) });
    let ended = tokio::select! {
        ended = tasks.join_next() => ended,
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    match ended {
        None => {
            tracing::info!("the runtime ends; the pods go on");
            Ok(())
        }
        Some(Ok((what, outcome))) => match outcome {
            Err(error) => Err(error).into_diagnostic().wrap_err(what),
            Ok(()) => Err(miette::miette!("{what} ended")),
        },
        Some(Err(panic)) => Err(panic).into_diagnostic(),
    }
}

async fn client(kubeconfig: &Path) -> miette::Result<kube::Client> {
    // These errors say their causes themselves.
    let broken = |error: &dyn std::fmt::Display| {
        miette::miette!("cannot use the kubeconfig {}: {error}", kubeconfig.display())
    };
    let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|error| broken(&error))?;
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|error| broken(&error))?;
    kube::Client::try_from(config).into_diagnostic()
}

fn host(
    args: &Args,
    client: &kube::Client,
    machine: &Machine,
    node_dir: &Path,
    network_ready: watch::Receiver<Result<(), String>>,
    images_changed: watch::Receiver<u64>,
) -> miette::Result<Host> {
    let mounts = Namespace::open(&args.node_mount_ns)
        .into_diagnostic()
        .wrap_err_with(|| {
            format!(
                "cannot open the node's mount namespace {}",
                args.node_mount_ns.display()
            )
        })?;
    let node_fs = node_dir.join("fs");
    Ok(Host {
        node: args.node.clone(),
        ips: args.node_ip.clone(),
        cpus: machine.cpus,
        memory: machine.memory,
        client: client.clone(),
        events: Events::start(client.clone(), &args.node),
        objects: Objects::watch(client),
        network: Network {
            conf_dir: node_fs.join("etc/cni/net.d"),
            plugins: Plugins {
                dir: "/opt/cni/bin".into(),
                mounts: Some(Arc::new(mounts)),
            },
        },
        network_ready,
        images: Store::new(args.lab_dir.join("images")),
        images_changed,
        dns: ClusterDns {
            servers: args.cluster_dns.clone(),
            domain: args.cluster_domain.clone(),
        },
        pods: node_dir.join("pods"),
        node_fs,
        slots: Host::slots(),
        registry: Arc::new(Registry::default()),
    })
}

/// The kubelet API's socket; one that an earlier runtime left is replaced.
fn listen(path: &Path) -> miette::Result<UnixListener> {
    let listening = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path)
    };
    listening()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot serve the kubelet API on {}", path.display()))
}

/// Whether there is a network that pods can be attached to.
fn network_state(net_d: &Path) -> Result<(), String> {
    match NetworkList::first(net_d) {
        Ok(_) => Ok(()),
        Err(CniError::NotInitialized(_)) => Err("cni plugin not initialized".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Another number when the store's index changed.
fn fingerprint(images: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let mut files: Vec<_> = std::fs::read_dir(images)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name(), entry.metadata().ok()?.modified().ok()?))
        })
        .collect();
    files.sort();
    files.hash(&mut hasher);
    hasher.finish()
}
