//! The server behind the image podnet/echo: it tells every client how the client reached it.

mod http;
mod listen;
mod reply;
mod stream;
mod udp;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use miette::{IntoDiagnostic, miette};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use reply::Identity;
use stream::Transport;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve HTTP/1.1 and HTTP/2 without TLS on this port; without any port at all: 8080
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    http: Vec<u16>,
    /// Answer every line that comes over TCP on this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Vec<u16>,
    /// Answer every datagram that comes to this UDP port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    udp: Vec<u16>,
    /// Answer every line that comes over SCTP on this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    sctp: Vec<u16>,
}

/// Runs until told to stop.
pub fn run(mut args: Args) -> miette::Result<()> {
    if [&args.http, &args.tcp, &args.udp, &args.sctp]
        .iter()
        .all(|ports| ports.is_empty())
    {
        args.http.push(8080);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .into_diagnostic()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(serve(args)))
}

async fn serve(args: Args) -> miette::Result<()> {
    let identity = Arc::new(Identity::from_environment());
    let busy = Rc::new(());
    let failed = |error: listen::ListenError| miette!(help = error.help(), "{error}");
    for port in args.http {
        let listener = listen::stream(Transport::Tcp, port).map_err(failed)?;
        tokio::task::spawn_local(http::serve(listener, identity.clone(), busy.clone()));
    }
    for (ports, transport) in [(args.tcp, Transport::Tcp), (args.sctp, Transport::Sctp)] {
        for port in ports {
            let listener = listen::stream(transport, port).map_err(failed)?;
            tokio::task::spawn_local(stream::serve(listener, transport, identity.clone()));
        }
    }
    for port in args.udp {
        let socket = listen::datagram(port).map_err(failed)?;
        tokio::task::spawn_local(udp::serve(socket, port, identity.clone()));
    }
    // PID 1 of a container is ended by a signal only if it asks for it.
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => return Ok(()),
    }
    finish(&busy).await;
    Ok(())
}

/// Requests that are being answered are answered to their end; the kubelet's patience is the limit. New ones
/// are still taken meanwhile: the rest of the cluster may not have heard yet.
async fn finish(busy: &Rc<()>) {
    while http::requests(busy) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What was answered last is on its way out.
    tokio::time::sleep(Duration::from_millis(20)).await;
}
