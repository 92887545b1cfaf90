//! `podnet apiserver`.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use miette::{IntoDiagnostic, WrapErr, miette};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::TcpListener;

use crate::api::Api;
use crate::bootstrap::{Advertised, bootstrap};
use crate::pki::Pki;
use crate::rest::{self, Handler, TlsFiles, Tokens};
use crate::services::{Allocations, first_addresses};
use crate::store;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port to serve on (repeatable; port 0 takes a free one)
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Inherited listening TCP socket to serve on (repeatable)
    #[arg(long, value_name = "FD")]
    listen_fd: Vec<i32>,
    /// The server's certificate
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "client_ca"], conflicts_with = "pki_dir")]
    tls_cert: Option<PathBuf>,
    /// The server's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// CA of client certificates
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Directory for a CA of the server's own; what is missing there is made
    #[arg(long, value_name = "DIR", required_unless_present = "tls_cert")]
    pki_dir: Option<PathBuf>,
    /// More names and addresses for the server's own certificate (repeatable)
    #[arg(long, value_name = "NAME", requires = "pki_dir")]
    tls_san: Vec<String>,
    /// Write an administrator's kubeconfig for this URL ({port} is the first --listen's) before serving (repeatable)
    #[arg(long, value_name = "PATH=URL", requires = "pki_dir")]
    write_kubeconfig: Vec<KubeconfigFor>,
    /// Bearer tokens: lines of token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    token_auth_file: Option<PathBuf>,
    /// Where objects are kept
    #[arg(long, value_name = "memory|disk=DIR", default_value = "memory")]
    datastore: Datastore,
    /// Ranges of Services' addresses; the first family is the default
    #[arg(
        long,
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ',',
        default_value = "10.96.0.0/16"
    )]
    service_cidr: Vec<IpNet>,
    /// Range of Services' node ports
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767")]
    service_node_port_range: PortRange,
    /// Addresses at which pods reach this server
    #[arg(long, value_name = "IP[,IP6]", value_delimiter = ',')]
    advertise_address: Vec<IpAddr>,
    /// Port at which pods reach this server
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    advertise_port: u16,
    /// Directory of the nodes' kubelet sockets (NODE.sock), for logs, exec and attach
    #[arg(long, value_name = "DIR")]
    kubelet_socket_dir: Option<PathBuf>,
    /// Write one byte to this inherited descriptor when serving
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,
}

/// `PATH=URL`.
#[derive(Clone, Debug)]
struct KubeconfigFor {
    path: PathBuf,
    url: String,
}

impl FromStr for KubeconfigFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, url) = text.split_once('=').ok_or("expected PATH=URL")?;
        if !url.starts_with("https://") {
            return Err(format!("{url:?} is not an https:// URL"));
        }
        Ok(KubeconfigFor {
            path: path.into(),
            url: url.to_owned(),
        })
    }
}

/// Where objects are kept.
#[derive(Clone, Debug)]
enum Datastore {
    Memory,
    Disk(PathBuf),
}

impl FromStr for Datastore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "memory" => Ok(Datastore::Memory),
            Some(("disk", dir)) if !dir.is_empty() => Ok(Datastore::Disk(dir.into())),
            _ => Err("expected memory or disk=DIR".to_owned()),
        }
    }
}

/// `30000-32767`.
#[derive(Clone, Debug)]
struct PortRange(RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?))
        };
        match parse() {
            Some((first, last)) if first > 0 && first <= last => Ok(PortRange(first..=last)),
            _ => Err("expected FIRST-LAST, such as 30000-32767".to_owned()),
        }
    }
}

/// Runs until told to stop.
pub fn run(args: Args) -> miette::Result<()> {
    // Somebody else in the process may have been first; any provider will do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime
        .into_diagnostic()
        .wrap_err("cannot start the async runtime")?
        .block_on(serve(args))
}

async fn serve(args: Args) -> miette::Result<()> {
    check(&args)?;
    let listeners = listeners(&args).await?;
    let tls = tls(&args, &listeners)?;
    let tokens = match &args.token_auth_file {
        Some(file) => Tokens::read(file).into_diagnostic()?,
        None => Tokens::default(),
    };
    let store = match &args.datastore {
        Datastore::Memory => store::memory(),
        Datastore::Disk(dir) => store::disk(dir).into_diagnostic()?,
    };
    let services = Allocations::new(&args.service_cidr, args.service_node_port_range.0.clone());
    let api = Api::new(store, services, args.kubelet_socket_dir.clone()).await;
    let api = Arc::new(api.into_diagnostic()?);
    let advertised = Advertised {
        addresses: args.advertise_address.clone(),
        port: args.advertise_port,
    };
    bootstrap(&api, &args.service_cidr, &advertised)
        .await
        .map_err(|refusal| miette!("cannot make the cluster's first objects: {refusal}"))?;
    let handler = Handler::new(api, tokens);
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving");
        }
        serving.spawn(rest::serve(listener, tls.clone(), handler.clone()));
    }
    if let Some(fd) = args.ready_fd {
        let inherited = inherited(fd).wrap_err("cannot say that the server is ready")?;
        File::from(inherited)
            .write_all(b"1")
            .into_diagnostic()
            .wrap_err("cannot say that the server is ready")?;
    }
    tokio::select! {
        stopped = told_to_stop() => stopped,
        // None of them ends by itself.
        Some(ended) = serving.join_next() => Err(miette!(
            help = "start it again; the log has the cause",
            "one of the server's addresses is no longer served: {}",
            ended.err().map_or_else(|| "its task ended".to_owned(), |error| error.to_string())
        )),
    }
}

fn check(args: &Args) -> miette::Result<()> {
    if args.listen.is_empty() && args.listen_fd.is_empty() {
        return Err(miette!(
            help = "give --listen 127.0.0.1:6443",
            "there is nothing to listen on"
        ));
    }
    let two_of_a_family = match args.service_cidr.as_slice() {
        [_] => false,
        [a, b] => a.addr().is_ipv4() == b.addr().is_ipv4(),
        _ => true,
    };
    if two_of_a_family {
        return Err(miette!(
            help = "give one IPv4 and one IPv6 range",
            "--service-cidr takes one range per family"
        ));
    }
    Ok(())
}

async fn listeners(args: &Args) -> miette::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in &args.listen {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.map_err(|error| {
            miette!(
                help = "choose another --listen, or end what uses it",
                "cannot listen on {address}: {error}"
            )
        })?);
    }
    for fd in &args.listen_fd {
        let listener = std::net::TcpListener::from(inherited(*fd)?);
        listener.set_nonblocking(true).into_diagnostic()?;
        let listener = TcpListener::from_std(listener).into_diagnostic();
        listeners.push(listener.wrap_err_with(|| format!("cannot listen on descriptor {fd}"))?);
    }
    Ok(listeners)
}

/// A descriptor that the parent process left open, as a duplicate that we own.
fn inherited(fd: i32) -> miette::Result<OwnedFd> {
    let duplicate = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|this| pidfd_getfd(this, fd, PidfdGetfdFlags::empty()));
    duplicate.map_err(|error| {
        miette!(
            help = "is it open in the parent?",
            "descriptor {fd} is not usable: {error}"
        )
    })
}

fn tls(args: &Args, listeners: &[TcpListener]) -> miette::Result<Arc<rustls::ServerConfig>> {
    let files = match (&args.tls_cert, &args.tls_key, &args.client_ca, &args.pki_dir) {
        (Some(certificate), Some(key), Some(client_ca), _) => TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        },
        (.., Some(dir)) => own_pki(args, dir, listeners)?,
        _ => {
            return Err(miette!(
                help = "give --pki-dir, or --tls-cert, --tls-key and --client-ca",
                "no keys"
            ));
        }
    };
    rest::tls_config(&files).map(Arc::new).into_diagnostic()
}

fn own_pki(args: &Args, dir: &std::path::Path, listeners: &[TcpListener]) -> miette::Result<TlsFiles> {
    let mut sans = args.tls_san.clone();
    let addresses = args
        .listen
        .iter()
        .map(|listen| listen.ip())
        .chain(args.advertise_address.iter().copied());
    sans.extend(
        addresses
            .filter(|address| !address.is_unspecified())
            .map(|address| address.to_string()),
    );
    sans.extend(
        first_addresses(&args.service_cidr)
            .iter()
            .map(ToString::to_string),
    );
    let pki = Pki::create(dir, &sans).into_diagnostic()?;
    let port = listeners
        .first()
        .and_then(|listener| listener.local_addr().ok())
        .map_or(0, |address| address.port());
    for kubeconfig in &args.write_kubeconfig {
        let url = kubeconfig.url.replace("{port}", &port.to_string());
        pki.write_kubeconfig(&kubeconfig.path, &url).into_diagnostic()?;
    }
    Ok(TlsFiles {
        certificate: pki.server_certificate(),
        key: pki.server_key(),
        client_ca: pki.ca_certificate(),
    })
}

async fn told_to_stop() -> miette::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    Ok(())
}
