//! How long it takes from a write to the API until it is in force on a node, and what the agent needs for it:
//! `cargo xtask bench` runs it.
//!
//! The real `podnet apiserver` and `podnet agent`, in a network namespace of their own, with 1,000 and then 10,000
//! services of five endpoints each. The change is one endpoint's: measured from sending the request, so with all that the
//! API server does, to the kernel's having it. At last the node's rules are flushed, as by somebody else. Prints milliseconds and
//! mebibytes as JSON.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use podnet_core::cluster::DataplaneName;
use podnet_dataplane::Kernel;
use podnet_linux::netfilter::Netfilter;
use podnet_linux::ns::{Kind, Namespace};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const ENDPOINTS: u32 = 5;
const CHANGES: u32 = 101;
/// So many requests are under way at once.
const AT_ONCE: usize = 32;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const TEAM: &str = "team";
/// Where the agent tells whether it is ready.
const READY: &str = "127.0.0.1:9980";

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Asks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: waited for too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The executable to measure: the one that is named, or the one that was built with this example.
fn podnet() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let beside = || here.parent().unwrap().with_file_name("podnet");
    std::env::args_os().nth(1).map_or_else(beside, PathBuf::from)
}

fn start(dir: &Path, log: &str, arguments: &[&str]) -> Process {
    let log = std::fs::File::create(dir.join(log)).unwrap();
    let child = Command::new(podnet())
        .args(arguments)
        .stderr(log)
        .stdout(Stdio::null())
        .spawn();
    Process(child.unwrap())
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn name(index: u32) -> String {
    format!("backend-{index}")
}

fn service(index: u32) -> Service {
    object(json!({
        "metadata": { "name": name(index) },
        "spec": {
            "clusterIP": Ipv4Addr::from(0x0a60_0101 + index).to_string(),
            "ports": [{ "name": "http", "port": 80 }],
        },
    }))
}

/// The endpoints of a service in the given round: the first one's address changes with it.
fn endpoints(index: u32, round: u32) -> Value {
    let endpoint = |number: u32| {
        let own = if number == 0 { round % 2 * 0x0008_0000 } else { 0 };
        let address = Ipv4Addr::from(0x0af4_0001 + index * ENDPOINTS + number + own);
        json!({ "addresses": [address.to_string()], "conditions": { "ready": true } })
    };
    (0..ENDPOINTS).map(endpoint).collect()
}

fn slice(index: u32) -> EndpointSlice {
    object(json!({
        "metadata": { "name": name(index), "labels": { "kubernetes.io/service-name": name(index) } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 80 }],
        "endpoints": endpoints(index, 0),
    }))
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await;
    kube::Client::try_from(config.unwrap()).unwrap()
}

async fn fill(client: &kube::Client, services: u32) {
    let namespace: KubeNamespace = object(json!({ "metadata": { "name": TEAM } }));
    let post = PostParams::default();
    Api::all(client.clone()).create(&post, &namespace).await.unwrap();
    let nodes = Api::<Node>::all(client.clone());
    let node = json!({ "metadata": { "name": "node1" }, "spec": { "podCIDR": "10.240.0.0/24", "podCIDRs": ["10.240.0.0/24"] } });
    nodes.create(&post, &object(node)).await.unwrap();
    let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.11" }] } });
    nodes
        .patch_status("node1", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let (all_services, all_slices) = (
        Api::<Service>::namespaced(client.clone(), TEAM),
        Api::<EndpointSlice>::namespaced(client.clone(), TEAM),
    );
    let requests = (0..services).map(|index| {
        let (all_services, all_slices, post) = (&all_services, &all_slices, &post);
        async move {
            all_services.create(post, &service(index)).await?;
            all_slices.create(post, &slice(index)).await?;
            Ok::<_, kube::Error>(())
        }
    });
    stream::iter(requests)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
        .unwrap();
}

fn ready() -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(READY)?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(" 200 "))
}

/// A figure of /proc/PID/status in MiB.
fn mebibytes(process: &Process, figure: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
    let kibibytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes / 1024.0
}

/// The moments at which the node's tables change.
fn changes() -> mpsc::Receiver<Instant> {
    let mut monitor = Kernel::open(None, DataplaneName::Nftables)
        .unwrap()
        .monitor()
        .unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(
        move || {
            while monitor.wait().is_ok() && tell.send(Instant::now()).is_ok() {}
        },
    );
    told
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// From somebody's flushing all of the node's rules until all of it is there again. Nobody but the agent listens: the
/// kernel makes a message of each element for who does.
fn repair() -> f64 {
    let size = || nft(&["-j", "list", "table", "inet", "podnet"]).len();
    let mut netfilter = Netfilter::open().unwrap();
    let before = size();
    let begin = Instant::now();
    nft(&["flush", "ruleset"]);
    let (mut generation, mut last) = (netfilter.generation().unwrap(), begin);
    while last.elapsed() < Duration::from_secs(2) {
        let now = netfilter.generation().unwrap();
        if now != generation {
            (generation, last) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // Handles are numbers, and have become longer.
    assert!(size() >= before, "not all has come back");
    last.duration_since(begin).as_secs_f64() * 1000.0
}

fn measure(services: u32) -> String {
    ip("link set lo up");
    ip("link add eth0 up type bridge");
    ip("address add 172.30.0.11/24 dev eth0");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let write = format!("{}=https://127.0.0.1:{{port}}", path("kubeconfig"));
    let pki = path("pki");
    let server = [
        "apiserver",
        "--listen",
        "127.0.0.1:0",
        "--pki-dir",
        &pki,
        "--write-kubeconfig",
        &write,
    ];
    let _server = start(dir.path(), "apiserver.log", &server);
    let kubeconfig = dir.path().join("kubeconfig");
    until("the API server", || kubeconfig.exists());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = runtime.block_on(client(&kubeconfig));
    runtime.block_on(fill(&client, services));

    let dirs = [
        "--cni-bin-dir",
        "--cni-conf-dir",
        "--host-etc",
        "--state-dir",
        "--run-dir",
    ];
    let dirs: Vec<String> = dirs
        .iter()
        .flat_map(|flag| [(*flag).to_owned(), path(&flag[2..])])
        .collect();
    std::fs::write(path("podnet-cni"), "").unwrap();
    let plugin = path("podnet-cni");
    let mut arguments = vec![
        "agent",
        "--node",
        "node1",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    arguments.extend([
        "--cluster-cidr",
        "10.240.0.0/12",
        "--service-cidr",
        "10.96.0.0/12",
    ]);
    arguments.extend(["--cni-plugin", &plugin, "--metrics-address", READY]);
    arguments.extend(dirs.iter().map(String::as_str));
    let begin = Instant::now();
    let agent = start(dir.path(), "agent.log", &arguments);
    until("the agent", ready);
    let all = begin.elapsed();

    let slices = Api::<EndpointSlice>::namespaced(client, TEAM);
    let changed = changes();
    let mut times: Vec<f64> = (1..=CHANGES)
        .map(|round| {
            // Until what the last one brought about is over.
            while changed.recv_timeout(Duration::from_millis(50)).is_ok() {}
            let patch = Patch::Merge(json!({ "endpoints": endpoints(services / 2, round) }));
            let begin = Instant::now();
            let name = name(services / 2);
            runtime
                .block_on(slices.patch(&name, &PatchParams::default(), &patch))
                .unwrap();
            let in_force = changed.recv_timeout(PATIENCE).unwrap();
            in_force.duration_since(begin).as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (times[times.len() / 2], times[times.len() - 2]);
    // Pages of the executable are every podnet process's on the node.
    let (own, executable) = (mebibytes(&agent, "RssAnon"), mebibytes(&agent, "RssFile"));
    let peak = mebibytes(&agent, "VmHWM") - executable;
    drop(changed);
    let repair = repair();
    let all = all.as_secs_f64() * 1000.0;
    format!(
        "{{\"services\": {services}, \"start\": {all:.0}, \"change_p50\": {p50:.2}, \"change_p99\": {p99:.2}, \
         \"mebibytes\": {own:.1}, \"peak_mebibytes\": {peak:.1}, \"executable_mebibytes\": {executable:.1}, \"repair\": {repair:.0}}}"
    )
}

fn main() {
    let figures = [1000, 10_000].map(|services| {
        let namespace = Namespace::create(Kind::Net).unwrap();
        namespace.run(|| measure(services)).unwrap()
    });
    println!("[{}]", figures.join(", "));
}
