//! PID 1 of a lab: makes its namespaces, starts its processes, reaps its orphans.
//!
//! It starts in two steps, because a process cannot move itself into a PID namespace: `--launch` unshares and
//! starts the real init as the first process of the new namespace. Init then waits for its request on standard
//! input, so that a lab exists only once someone has written down how to end it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use miette::{Context, IntoDiagnostic, miette};
use podnet_core::cluster::DataplaneName;
use podnet_linux::mount;
use podnet_linux::ns::{self, Kind, Namespace};

use super::group;
use super::layout::LabDir;
use super::node::{self, NodeSpaces};
use super::plan::{Datastore, LOOPBACK, NodePlan, Plan, Request, UNDERLAY_API_PORT};
use super::record::{NodeNamespaces, ProcessIdentity, Record, read_json, write_json};
use super::service::{Service, Supervisor, bound_logs};
use super::underlay;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The lab's directory
    #[arg(long)]
    dir: PathBuf,
    /// Make the namespaces, start init in them, print its PID and end
    #[arg(long)]
    launch: bool,
    /// Only try whether the namespaces can be made
    #[arg(long)]
    probe: bool,
}

/// What init says to `podnet lab up`, a line each.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Init runs and waits for the line `go`.
    Pid(u32),
    /// All processes are started.
    Up,
    /// The lab cannot be: why.
    Failed(String),
}

impl Word {
    fn say(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(self).map_err(io::Error::other)?)?;
        out.flush()
    }
}

/// Runs init, or starts it.
pub fn run(args: Args) -> miette::Result<()> {
    if args.probe {
        return ns::unshare(namespaces() | Kind::Net.flag()).into_diagnostic();
    }
    if args.launch {
        return launch(&args.dir).into_diagnostic();
    }
    let built = await_go().and_then(|()| build(&LabDir::at(&args.dir)));
    match built {
        Ok(standing) => {
            Word::Up.say().into_diagnostic()?;
            forget_terminal().into_diagnostic()?;
            reap(&standing.supervisor).into_diagnostic()
        }
        Err(report) => {
            // The asker prints it; if there is none any more, the log has it.
            let _ = Word::Failed(in_one_line(&report)).say();
            Err(report)
        }
    }
}

/// An error with its causes and its advice.
fn in_one_line(report: &miette::Report) -> String {
    let causes: Vec<String> = report.chain().map(ToString::to_string).collect();
    let help = report.help().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{}{help}", causes.join(": "))
}

/// Unshares what the lab needs and starts init there.
fn launch(dir: &Path) -> io::Result<()> {
    let user = rustix::process::geteuid();
    let group = rustix::process::getegid();
    ns::unshare(namespaces())?;
    if !user.is_root() {
        // Without a privileged helper a user may map one ID: its own, as root of the new namespace.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
        fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))?;
    }
    let exe = std::env::current_exe()?;
    let init = Command::new(exe).arg("lab-init").arg("--dir").arg(dir).spawn()?;
    Word::Pid(init.id()).say()
}

/// The namespaces that a lab as a whole has; an ordinary user is root only in a user namespace.
fn namespaces() -> i32 {
    let user = if rustix::process::geteuid().is_root() {
        0
    } else {
        Kind::User.flag()
    };
    user | Kind::Mount.flag() | Kind::Pid.flag()
}

fn await_go() -> miette::Result<()> {
    rustix::process::setsid().into_diagnostic()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).into_diagnostic()?;
    match line.trim() {
        "go" => Ok(()),
        _ => Err(miette!("nobody asked for this lab any more")),
    }
}

/// Standard streams of a process that outlives the command that started it.
fn forget_terminal() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// The duty of PID 1: every orphan of the lab ends here.
fn reap(supervisor: &Arc<Supervisor>) -> io::Result<()> {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, _))) => supervisor.reaped(pid.as_raw_nonzero().get().unsigned_abs())?,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // Every service waits to be started again.
            Err(rustix::io::Errno::CHILD) => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What init holds for the lab's life. The descriptors of the namespaces are how other commands get in.
struct Standing {
    supervisor: Arc<Supervisor>,
    _underlay: Arc<Namespace>,
    _nodes: BTreeMap<String, NodeSpaces>,
}

/// Makes the whole lab.
fn build(dir: &LabDir) -> miette::Result<Standing> {
    let mut record: Record = read_json(&dir.record())
        .into_diagnostic()
        .wrap_err("the lab's record")?;
    let plan = Plan::new(&record.request);
    own_mounts()
        .into_diagnostic()
        .wrap_err("the lab's mount namespace")?;

    let underlay = Arc::new(
        underlay::create(&plan)
            .into_diagnostic()
            .wrap_err("the underlay")?,
    );
    let group = attaches_programs(&record.request).then(|| group::create(dir, &record.request.name));
    let group = group
        .transpose()
        .into_diagnostic()
        .wrap_err("the lab's control group")?;
    let mut nodes = BTreeMap::new();
    for node in &plan.nodes {
        let spaces = node::create(dir, node)
            .and_then(|mut spaces| {
                let lab = group.iter();
                spaces.group = lab
                    .map(|lab| group::of_node(lab, &node.name))
                    .next()
                    .transpose()?;
                underlay::connect(&underlay, &plan.subnets[node.subnet], node, &spaces.net)?;
                Ok(spaces)
            })
            .into_diagnostic()
            .wrap_err_with(|| node.name.clone())?;
        nodes.insert(node.name.clone(), spaces);
    }
    record.underlay = Some(underlay.as_fd().as_raw_fd());
    record.nodes = nodes
        .iter()
        .map(|(name, spaces)| (name.clone(), descriptors(spaces)))
        .collect();
    write_json(&dir.record(), &record).into_diagnostic()?;

    let supervisor = Supervisor::new(dir.clone());
    bound_logs(dir.logs()).into_diagnostic()?;
    start_apiserver(dir, &record.request, &plan, &underlay, &supervisor)?;
    start(&supervisor, controller(dir, &plan))?;
    if record.request.uplink {
        start_uplink(dir, &plan, &underlay, &supervisor)?;
    }
    for node in &plan.nodes {
        let spaces = &nodes[&node.name];
        fs::copy(
            dir.node_kubeconfig(),
            dir.node(&node.name).own("var/lib/podnet").join("kubeconfig"),
        )
        .into_diagnostic()?;
        start(&supervisor, runtime(dir, &plan, node, spaces))?;
        start(&supervisor, agent(&record.request, &plan, node, spaces))?;
    }
    Ok(Standing {
        supervisor,
        _underlay: underlay,
        _nodes: nodes,
    })
}

/// Mounts of the lab stay in the lab, and its /proc shows its own processes.
fn own_mounts() -> io::Result<()> {
    mount::make_private()?;
    mount::proc(Path::new("/proc"))
}

/// Whether agents attach programs to their nodes' control groups.
fn attaches_programs(request: &Request) -> bool {
    request.dataplane.parse() == Ok(DataplaneName::Ebpf)
}

fn descriptors(spaces: &NodeSpaces) -> NodeNamespaces {
    NodeNamespaces {
        net: spaces.net.as_fd().as_raw_fd(),
        uts: spaces.uts.as_fd().as_raw_fd(),
        mnt: spaces.mnt.as_fd().as_raw_fd(),
    }
}

fn start(supervisor: &Supervisor, service: miette::Result<Service>) -> miette::Result<()> {
    supervisor.start(service?).map(drop).into_diagnostic()
}

/// Starts the API server and waits until its kubeconfigs are written, which everything else needs.
fn start_apiserver(
    dir: &LabDir,
    request: &Request,
    plan: &Plan,
    underlay: &Namespace,
    supervisor: &Supervisor,
) -> miette::Result<()> {
    let machine = listen(SocketAddr::from(([127, 0, 0, 1], request.api_port)))?;
    let inside = underlay
        .run(|| listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, UNDERLAY_API_PORT))))
        .into_diagnostic()??;
    let port = machine.local_addr().into_diagnostic()?.port();
    let api = plan.api_addresses();
    let endpoint = api
        .first()
        .ok_or_else(|| miette!("the underlay has no address"))?;
    let datastore = match request.datastore {
        Datastore::Memory => "memory".to_owned(),
        Datastore::Disk => format!("disk={}", dir.datastore().display()),
    };
    let mut args = vec![
        "apiserver".to_owned(),
        "--listen-fd=0".to_owned(),
        "--listen-fd=1".to_owned(),
        format!("--datastore={datastore}"),
        format!("--service-cidr={}", comma(&plan.service_cidrs)),
        format!("--advertise-address={}", comma(&api)),
        format!("--advertise-port={UNDERLAY_API_PORT}"),
        format!("--kubelet-socket-dir={}", dir.kubelet().display()),
        format!("--pki-dir={}", dir.pki().display()),
        format!(
            "--write-kubeconfig={}=https://127.0.0.1:{port}",
            dir.kubeconfig().display()
        ),
        format!(
            "--write-kubeconfig={}=https://{}",
            dir.node_kubeconfig().display(),
            SocketAddr::new(*endpoint, UNDERLAY_API_PORT)
        ),
    ];
    args.extend(plan.api_names().iter().map(|name| format!("--tls-san={name}")));
    let sockets = Some((machine, inside));
    let program = own_executable()?;
    let service = Service {
        name: "apiserver".into(),
        program,
        args,
        namespaces: Vec::new(),
        group: None,
        sockets,
    };
    let pid = supervisor.start(service).into_diagnostic()?;
    await_files(&[dir.kubeconfig(), dir.node_kubeconfig()], pid).map_err(|why| {
        miette!(
            "the API server {why}; its log ends with:\n{}",
            tail(&dir.log("apiserver"))
        )
    })
}

/// Starts the uplink and waits until packets can pass.
fn start_uplink(
    dir: &LabDir,
    plan: &Plan,
    underlay: &Namespace,
    supervisor: &Supervisor,
) -> miette::Result<()> {
    let service = Service {
        name: "uplink".into(),
        program: own_executable()?,
        args: vec![
            "uplink".into(),
            format!("--underlay=/proc/1/fd/{}", underlay.as_fd().as_raw_fd()),
            format!("--loopback={}", comma(&LOOPBACK)),
            format!("--inside={}", comma(&plan.own_ranges())),
            format!("--kubeconfig={}", dir.kubeconfig().display()),
            format!("--ready-file={}", dir.uplink_ready().display()),
        ],
        namespaces: Vec::new(),
        group: None,
        sockets: None,
    };
    let pid = supervisor.start(service).into_diagnostic()?;
    await_files(&[dir.uplink_ready()], pid).map_err(|why| {
        miette!(
            "the uplink {why}; its log ends with:\n{}",
            tail(&dir.log("uplink"))
        )
    })
}

fn listen(address: SocketAddr) -> miette::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => miette!(
            help = "leave --api-port away to get a free one, or end what listens there (ss -ltnp)",
            "port {} is already in use on {}",
            address.port(),
            address.ip()
        ),
        _ => miette!("listening on {address}: {error}"),
    })
}

/// Waits for files that the process `pid` puts in place whole; or says why they will not come.
fn await_files(paths: &[PathBuf], pid: u32) -> Result<(), String> {
    let limit = Instant::now() + Duration::from_secs(30);
    while let Some(missing) = paths.iter().find(|path| !path.exists()) {
        if ProcessIdentity::of(pid).is_err() {
            return Err("ended at once".into());
        }
        if Instant::now() > limit {
            return Err(format!("did not write {} within 30 s", missing.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn controller(dir: &LabDir, plan: &Plan) -> miette::Result<Service> {
    Ok(Service {
        name: "controller".into(),
        program: own_executable()?,
        args: vec![
            "controller".into(),
            format!("--kubeconfig={}", dir.kubeconfig().display()),
            "--controllers=all".into(),
            "--leader-elect=false".into(),
            format!("--cluster-cidr={}", comma(&plan.cluster_cidrs)),
            format!("--service-cidr={}", comma(&plan.service_cidrs)),
        ],
        namespaces: Vec::new(),
        group: None,
        sockets: None,
    })
}

/// The runtime works in the node's network, but sees the lab's files: the pods' roots are built from them.
fn runtime(dir: &LabDir, plan: &Plan, node: &NodePlan, spaces: &NodeSpaces) -> miette::Result<Service> {
    let mut args = vec![
        "runtime".to_owned(),
        format!("--node={}", node.name),
        format!("--kubeconfig={}", dir.node_kubeconfig().display()),
        format!("--node-ip={}", comma(&node.node_ips(&plan.cluster_cidrs))),
        format!("--lab-dir={}", dir.root().display()),
        format!("--node-mount-ns=/proc/1/fd/{}", spaces.mnt.as_fd().as_raw_fd()),
        format!("--kubelet-socket={}", dir.kubelet_socket(&node.name).display()),
        format!("--cluster-dns={}", comma(&plan.cluster_dns())),
        "--cluster-domain=cluster.local".to_owned(),
    ];
    args.push(format!("--node-label=topology.kubernetes.io/zone={}", node.zone));
    args.push("--node-label=topology.kubernetes.io/region=lab".to_owned());
    Ok(Service {
        name: format!("{}-runtime", node.name),
        program: own_executable()?,
        args,
        namespaces: vec![Arc::clone(&spaces.net), Arc::clone(&spaces.uts)],
        group: spaces.group.clone(),
        sockets: None,
    })
}

/// The agent sees nothing but its node, as on a real one.
fn agent(request: &Request, plan: &Plan, node: &NodePlan, spaces: &NodeSpaces) -> miette::Result<Service> {
    let kept = request.non_masquerade_cidrs.iter();
    let kept = kept.map(|range| format!("--non-masquerade-cidr={range}"));
    let cross_subnet = request.cross_subnet.then(|| "--cross-subnet".to_owned());
    let scheduler = request.ipvs_scheduler.iter();
    let scheduler = scheduler.map(|scheduler| format!("--ipvs-scheduler={scheduler}"));
    let group = spaces.group.iter();
    let group = group.map(|group| format!("--cgroup-root={}", group.display()));
    Ok(Service {
        name: format!("{}-agent", node.name),
        program: node::EXECUTABLE.into(),
        args: [
            "agent".into(),
            "--node".into(),
            node.name.clone(),
            "--kubeconfig=/var/lib/podnet/kubeconfig".into(),
            format!("--dataplane={}", request.dataplane),
            format!("--routing={}", request.routing),
            format!("--cluster-cidr={}", comma(&plan.cluster_cidrs)),
            format!("--service-cidr={}", comma(&plan.service_cidrs)),
            format!("--cluster-dns={}", comma(&plan.cluster_dns())),
            format!("--masquerade={}", request.masquerade),
        ]
        .into_iter()
        .chain(kept)
        .chain(cross_subnet)
        .chain(scheduler)
        .chain(group)
        .collect(),
        namespaces: vec![
            Arc::clone(&spaces.net),
            Arc::clone(&spaces.uts),
            Arc::clone(&spaces.mnt),
        ],
        group: spaces.group.clone(),
        sockets: None,
    })
}

fn own_executable() -> miette::Result<PathBuf> {
    std::env::current_exe()
        .into_diagnostic()
        .wrap_err("the path of this executable")
}

fn comma<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
