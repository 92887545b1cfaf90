//! The server is a process here, killed again and again while the real plugin adds and deletes: no address is
//! doubled, nothing is left in the end, and what was wired goes on working.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::node::{Node, Pod, answer, serve};
use podnet_agent::cni_server::{CniServerConfig, PodNetwork, Readiness};
use podnet_cni::WiringName;
use podnet_core::ipam::Addressing;
use podnet_linux::ns::Namespace;

const NETNS: &str = "PODNET_TEST_NETNS";
const DIRECTORY: &str = "PODNET_TEST_DIRECTORY";

/// Run as a process of its own by the test below; alone it does nothing.
#[test]
fn serves_until_it_is_killed() {
    let Some(netns) = std::env::var_os(NETNS) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    Namespace::open(PathBuf::from(netns)).unwrap().enter().unwrap();
    let ready = Readiness::Ready(PodNetwork {
        addressing: Addressing::of_node(&[
            "10.244.1.0/26".parse().unwrap(),
            "fd00:10:244:1::/64".parse().unwrap(),
        ])
        .into(),
        mtu: 1450,
        dns: Vec::new(),
    });
    let config = CniServerConfig {
        socket: directory.join("cni.sock"),
        state_dir: directory.join("state"),
        node: "node1".into(),
        wiring: WiringName::Ptp,
        allowed_sysctls: Vec::new(),
        settings: Default::default(),
        programs: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_sender, ready) = tokio::sync::watch::channel(ready);
    runtime.block_on(serve(config, ready));
}

fn start(node: &Node) -> Child {
    let config = node.config();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::serves_until_it_is_killed", "--nocapture"])
        .env(
            NETNS,
            format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                node.netns.as_fd().as_raw_fd()
            ),
        )
        .env(DIRECTORY, config.socket.parent().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn sigkill_of_the_server_doubles_and_leaves_nothing() {
    let mut node = Node::start();
    node.stop();
    let wired: Mutex<BTreeMap<String, String>> = Mutex::default();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (node, wired, over) = (&node, &wired, &over);
            scope.spawn(move || {
                let mut kept: Vec<Pod> = Vec::new();
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let pod = Pod::new(&format!("crash-{thread}-{n}"));
                    let output = node.cni("ADD", &pod, "1.0.0", None);
                    if !output.status.success() {
                        // As a runtime does after a failed ADD.
                        let del = node.cni("DEL", &pod, "1.0.0", None);
                        assert!(del.status.success(), "{del:?}");
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    let address = answer(&output)["ips"][0]["address"].as_str().unwrap().to_owned();
                    let before = wired.lock().unwrap().insert(address.clone(), pod.id.clone());
                    assert_eq!(before, None, "{address} was given twice");
                    kept.push(pod);
                    if kept.len() > 4 {
                        let pod = kept.remove(0);
                        // Before the DEL, for afterwards the address may be given again.
                        wired.lock().unwrap().retain(|_, id| *id != pod.id);
                        let del = node.cni("DEL", &pod, "1.0.0", None);
                        assert!(del.status.success(), "{del:?}");
                    }
                }
                for pod in kept {
                    assert!(node.cni("DEL", &pod, "1.0.0", None).status.success());
                }
            });
        }
        for round in 0..12u64 {
            let mut server = start(&node);
            std::thread::sleep(Duration::from_millis(60 + round * 13));
            server.kill().unwrap();
            server.wait().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut server = start(&node);
    node.wait_until("everything is gone", || node.leftovers().is_empty());
    server.kill().unwrap();
    server.wait().unwrap();
}
