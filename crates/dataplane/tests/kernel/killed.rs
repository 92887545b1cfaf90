//! An agent that is killed while it puts thousands of services in: what is served goes on, and the next one completes it.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podnet_core::cluster::{
    AddressFamily, DataplaneName, Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol,
    Routing, Service, ServicePort,
};
use podnet_core::service::{HostAddress, HostPort};
use podnet_core::state::NodeState;
use podnet_dataplane::services::Services;
use podnet_dataplane::userspace::{SOCKET, Site};
use podnet_dataplane::{Dataplane, Kernel};
use tempfile::TempDir;

use crate::common::{BackEnd, Lab, Machine, eventually};
use crate::states::talk;

on_every_back_end!(an_agent_that_is_killed_in_the_middle_of_a_sync_loses_no_packet_and_the_next_completes_it);

const SERVICES: u16 = 2000;
/// What the child is told: the back end's name, and where agents of the node meet.
const NAME: &str = "PODNET_TEST_DATAPLANE";
const RUN_DIR: &str = "PODNET_TEST_RUN_DIR";
/// Where its programs are, if it has any.
const CGROUP: &str = "PODNET_TEST_CGROUP";
const BPFFS: &str = "PODNET_TEST_BPFFS";

/// A node with the service that is asked.
fn lab() -> Lab {
    let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    lab.exposed(1, &[(0, 2)], |_| {});
    lab
}

/// Thousands of services more, of two endpoints each.
fn crowd(lab: &mut Lab) {
    for number in 0..SERVICES {
        let [high, low] = number.to_be_bytes();
        let name = ObjectName::new("crowd", format!("svc{number}"));
        let port = 80.try_into().unwrap();
        let cluster_ip = IpAddr::from([10, 96, 1 + high, low]);
        let ports = vec![ServicePort::new("http", Protocol::Tcp, port)];
        let service = Service::new(vec![cluster_ip], ports).unwrap();
        lab.cluster.services.insert(name.clone(), Ok(service));
        let endpoints = [low, low ^ 1].map(|host| {
            let address = IpAddr::from([10, 244, 100 + high, host.max(1)]);
            Endpoint::ready(address, None)
        });
        let port = EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Some(port),
        };
        let family = AddressFamily::Ip(Family::V4);
        let slice = EndpointSlice::new(Some(name.clone()), family, vec![port], endpoints.into()).unwrap();
        lab.cluster.slices.insert(name, Ok(slice));
    }
}

#[test]
#[ignore = "it is the agent that the others start and kill"]
fn agent() {
    let (Ok(name), Ok(run_dir)) = (std::env::var(NAME), std::env::var(RUN_DIR)) else {
        return;
    };
    let mut lab = lab();
    crowd(&mut lab);
    let state = lab.state(0);
    let name: DataplaneName = name.parse().unwrap();
    let site = Site {
        socket: Path::new(&run_dir).join(SOCKET),
        identity: Arc::new(|| "this".to_owned()),
        start: Arc::new(|_| Err(std::io::Error::other("the proxy is there already"))),
    };
    let mut kernel = Kernel::open(None, name).unwrap().with_proxy(site).unwrap();
    if let (Some(cgroup), Some(bpffs)) = (std::env::var_os(CGROUP), std::env::var_os(BPFFS)) {
        let site = podnet_dataplane::ebpf::Site {
            cgroup: Some(cgroup.into()),
            bpffs: bpffs.into(),
            sizes: Default::default(),
        };
        kernel = kernel.with_programs(site).unwrap();
    }
    kernel.take_turns_in(Path::new(&run_dir)).unwrap();
    println!("begin");
    kernel.apply(&state).unwrap();
    println!("done");
}

/// An agent in a process of its own, which begins to apply.
struct Agent {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Agent {
    fn begin(node: &Machine, on: BackEnd) -> Agent {
        Agent::begin_with(node, on, |_| ())
    }

    fn begin_with(node: &Machine, on: BackEnd, change: impl FnOnce(&mut Command) + Send) -> Agent {
        let start = || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            change(&mut command);
            if on == BackEnd::Ebpf {
                let site = node.programs();
                command.env(CGROUP, site.cgroup.unwrap()).env(BPFFS, site.bpffs);
            }
            command
                .args(["--exact", "killed::agent", "--ignored", "--nocapture"])
                .env(NAME, on.name().to_string())
                .env(RUN_DIR, node.run_dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut child = node.run(start);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.ends_with("begin\n") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it did not begin");
        }
        Agent { child, output }
    }

    /// What it still says, to its end.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Kills it; says whether it was at work still.
    fn kill(mut self) -> bool {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        !self.rest().contains("done") && status.signal() == Some(9)
    }
}

/// The next agent comes to that state, and finds nothing to do once it has.
fn converge(node: &Machine, on: BackEnd, state: &NodeState) {
    let apply = || node.run(|| node.kernel(on.name()).apply(state).unwrap());
    let applied = apply();
    assert_eq!(applied.refused, Vec::<String>::new());
    let again = apply();
    assert!(again.is_nothing(), "{again:?}");
    let dump = node.run(|| node.kernel(on.name()).dump().unwrap());
    assert!(
        dump.services == Services::of(&state.services),
        "what is there is not the state"
    );
}

pub(crate) fn an_agent_that_is_killed_in_the_middle_of_a_sync_loses_no_packet_and_the_next_completes_it(
    on: BackEnd,
) {
    let mut lab = lab().carried_by(on);
    let (server, client) = (lab.pod(0, 2), lab.pod(0, 9));
    server.serve("a", 8080);
    lab.apply_all();
    let few = lab.state(0);
    crowd(&mut lab);
    let many = lab.state(0);
    let node = &lab.nodes[0];
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut killed = 0;
    std::thread::scope(|scope| {
        // However this ends, those who ask do.
        let _stop = Stop(&stop);
        for (from, to) in [
            (&client, "10.96.0.1:80"),
            (&client, "[fd00:10:96::1]:80"),
            (&lab.underlay, "172.30.0.11:30001"),
            (&lab.underlay, "[fd30::11]:30001"),
        ] {
            let (stop, asked) = (&stop, &asked);
            scope.spawn(move || talk(from, to, stop, asked));
        }
        let begin = Instant::now();
        let mut whole = Agent::begin(node, on);
        let took = Instant::now();
        assert!(whole.rest().contains("done"));
        assert!(whole.child.wait().unwrap().success());
        let took = took.elapsed();
        println!(
            "a sync takes {took:?}, with what is before it {:?}",
            begin.elapsed()
        );
        converge(node, on, &few);
        for (round, percent) in [3, 15, 30, 45, 60, 80].into_iter().enumerate() {
            let agent = Agent::begin(node, on);
            std::thread::sleep(took * percent / 100);
            killed += usize::from(agent.kill());
            // The next is to complete it, or to take it back.
            if round % 2 == 0 {
                converge(node, on, &many);
            }
            converge(node, on, &few);
        }
    });
    assert!(killed >= 2, "only {killed} were at work when they were killed");
    assert!(asked.into_inner() > 20);
}

mod programs_of_the_killed {
    use crate::common::BackEnd;

    #[test]
    fn of_iptables_legacy_are_waited_for() {
        super::what_a_killed_agent_started_is_waited_for(BackEnd::IptablesLegacy);
    }

    #[test]
    fn of_iptables_nft_are_waited_for() {
        super::what_a_killed_agent_started_is_waited_for(BackEnd::IptablesNft);
    }
}

/// A program that its agent did not outlive does what it was told when the next agent has begun.
fn what_a_killed_agent_started_is_waited_for(on: BackEnd) {
    let mut lab = lab().carried_by(on);
    lab.apply_all();
    let few = lab.state(0);
    crowd(&mut lab);
    let node = &lab.nodes[0];
    let slow = Slow::new(on);
    let agent = Agent::begin_with(node, on, |command| _ = command.env("PATH", slow.path()));
    eventually("the program has all it is told", || slow.has_begun());
    assert!(agent.kill(), "it was at work");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            slow.go_on();
        });
        converge(node, on, &few);
    });
    assert!(slow.has_ended(), "it was waited for");
    let rules = node.command(&format!("{}-save", on.iptables().unwrap()));
    assert!(
        !rules.contains("10.96.1.") && rules.contains("PODNET-"),
        "{rules}"
    );
}

/// An `iptables-restore` that waits when it has all that it is told.
struct Slow(TempDir);

impl Slow {
    fn new(on: BackEnd) -> Slow {
        let directory = tempfile::tempdir().unwrap();
        let program = format!("{}-restore", on.iptables().unwrap());
        let at = directory.path().display();
        let script = format!(
            "#!/bin/sh\ncat > {at}/told && mv {at}/told {at}/begun\n\
             until [ -e {at}/on ]; do sleep 0.02; done\n\
             /usr/sbin/{program} \"$@\" < {at}/begun\n\
             mv {at}/begun {at}/ended\n"
        );
        let file = directory.path().join(program);
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        Slow(directory)
    }

    /// Where programs are looked for: this one first.
    fn path(&self) -> String {
        let others = std::env::var("PATH").unwrap();
        format!("{}:{others}", self.0.path().display())
    }

    fn has_begun(&self) -> bool {
        self.0.path().join("begun").exists()
    }

    fn go_on(&self) {
        File::create(self.0.path().join("on")).unwrap();
    }

    fn has_ended(&self) -> bool {
        self.0.path().join("ended").exists()
    }
}

/// What cannot be changed for services keeps nothing else from being in force.
#[test]
fn host_ports_and_policies_do_not_wait_for_programs_of_iptables() {
    let mut lab = lab().carried_by(BackEnd::IptablesNft);
    let node = &lab.nodes[0];
    let mut kernel = node.run(|| node.kernel(BackEnd::IptablesNft.name()));
    let state = lab.state(0);
    node.run(|| kernel.apply(&state).unwrap());
    let host_port = HostPort {
        address: HostAddress::Any(Family::V4),
        protocol: Protocol::Tcp,
        port: 4711.try_into().unwrap(),
    };
    let target = "10.244.0.2:8080".parse().unwrap();
    lab.cluster.host_ports.insert(host_port, target);
    let state = lab.state(0);
    let node = &lab.nodes[0];
    let lock = File::create(node.run_dir.path().join("iptables.lock")).unwrap();
    lock.lock().unwrap();
    let error = node.run(|| kernel.follow(&state).unwrap_err().to_string());
    assert!(error.contains("iptables.lock"), "{error}");
    assert!(node.nft().contains("4711"), "{}", node.nft());
    drop(lock);
    let applied = node.run(|| kernel.apply(&state).unwrap());
    assert_eq!(applied.refused, Vec::<String>::new());
}

/// Tells those who ask to stop.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
