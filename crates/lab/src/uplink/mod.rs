//! `podnet uplink`: the way from a lab to the outside, through ordinary sockets of the machine.
//!
//! The process is in the machine's network, where it opens what goes outside, and has sockets in the lab's underlay
//! ([`underlay`]) for what comes from inside. [`gate`] sees first packets; [`tcp`] and [`udp`] join an inner and an outer
//! socket; [`rules`] lead all further packets to the inner ones. Nothing of the machine's own network is changed, and no
//! privilege over it is needed.

mod flows;
mod gate;
mod packet;
mod pods;
mod rules;
mod tcp;
mod udp;
mod underlay;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use miette::{Context, IntoDiagnostic};
use podnet_linux::netlink::Netlink;
use podnet_linux::ns::Namespace;
use rustix::process::{Resource, Rlimit};
use tokio::net::TcpListener;

use crate::cluster::api::Api;
use gate::Gate;
use tcp::Connections;
use udp::Sessions;
use underlay::Entrance;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network namespace of the lab's underlay
    #[arg(long)]
    underlay: PathBuf,
    /// The addresses of the underlay that stand for this machine's loopback, one of each family
    #[arg(long, value_delimiter = ',', required = true)]
    loopback: Vec<IpAddr>,
    /// The lab's own ranges, from which nothing goes outside that has no route inside
    #[arg(long, value_delimiter = ',')]
    inside: Vec<IpNet>,
    /// How to reach the API server, which knows the nodes' ranges
    #[arg(long)]
    kubeconfig: PathBuf,
    /// A file to make when packets can pass
    #[arg(long)]
    ready_file: PathBuf,
}

/// Runs until it is killed.
pub fn run(args: Args) -> miette::Result<()> {
    // The first provider stays; a second call in one process changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let underlay = Namespace::open(&args.underlay)
        .into_diagnostic()
        .wrap_err_with(|| format!("opening {}", args.underlay.display()))?;
    let most = most(allow_many_descriptors().into_diagnostic()?);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .into_diagnostic()?
        .block_on(serve(args, underlay, most))
}

/// Takes as many descriptors as the process may have; how many these are.
fn allow_many_descriptors() -> io::Result<u64> {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, limit)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// How many connections, and how many UDP sessions, there may be at once with so many descriptors.
fn most(descriptors: u64) -> usize {
    /// However many descriptors there are.
    const MOST: usize = 8192;
    /// A connection has two sockets and two pipes, a session two sockets.
    const OF_BOTH: u64 = 6 + 2;
    /// Listeners, the gate, the API's connection.
    const OTHERS: u64 = 128;
    let room = descriptors.saturating_sub(OTHERS) / OF_BOTH;
    usize::try_from(room).map_or(MOST, |room| room.clamp(1, MOST))
}

async fn serve(args: Args, underlay: Namespace, most: usize) -> miette::Result<()> {
    let Entrance { gate, mac, listeners } = underlay
        .run(|| underlay::make(&args.inside, &args.loopback))
        .and_then(|made| made)
        .into_diagnostic()
        .wrap_err("making the uplink in the underlay")?;
    let netlink = Netlink::open_in(&underlay).into_diagnostic()?;
    let gate = Arc::new(Gate::new(gate, mac));
    let connections = Connections::new(Arc::clone(&gate), args.loopback.clone(), most);
    let sessions = Sessions::new(Arc::clone(&gate), args.loopback, most);
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let listener = TcpListener::from_std(listener).into_diagnostic()?;
        tasks.spawn(Arc::clone(&connections).accept(listener));
    }
    let kubeconfig = args.kubeconfig;
    tasks.spawn(async move {
        let api = Api::connect(&kubeconfig).await.map_err(io::Error::other)?;
        pods::follow(api.client(), netlink).await;
        Err(io::Error::other("the watch of the nodes ended"))
    });
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("gate".into())
        .spawn(move || {
            let served = underlay
                .enter()
                .and_then(|()| gate::serve(&gate, &connections, &sessions));
            // Nobody listens any more only when the process ends.
            let _ = ended.send(served);
        })
        .into_diagnostic()?;
    std::fs::write(&args.ready_file, "").into_diagnostic()?;
    tracing::info!("the uplink is open");
    tokio::select! {
        served = end => served.into_diagnostic()?.into_diagnostic().wrap_err("the gate"),
        Some(ended) = tasks.join_next() => ended.into_diagnostic()?.into_diagnostic(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn descriptors_limit_connections() {
        assert_eq!(super::most(u64::MAX), 8192);
        assert_eq!(super::most(1024), 112);
        assert_eq!(super::most(0), 1);
    }
}
