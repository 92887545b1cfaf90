//! Real container runtimes from Debian, and Debian's CNI plugins before and behind ours.

mod driver;
mod machine;

use crate::support::{DEMO, Lab};
use driver::{Container, Runtime, Runtimes, bracketed, host};
use machine::Machine;

/// A container of a real runtime and the lab's pods see each other, and each sees the other's own address.
fn meets_the_lab(lab: &Lab, container: &Container<'_>) {
    let pods = lab.pods("default");
    let toolbox = pods.iter().find(|pod| pod.name == "toolbox").unwrap();
    let own = container.addresses();
    assert_eq!(own.len(), 2, "one of each family: {own:?}");
    for (family, address) in own.iter().enumerate() {
        for pod in pods.iter().filter(|pod| pod.is_app("echo")) {
            let seen = container.ask(&format!("http://{}:8080/", bracketed(&pod.ips[family])));
            assert_eq!(host(&seen["client"]), *address, "{seen}");
            assert_eq!(seen["pod"], *pod.name, "{seen}");
        }
        let url = format!("http://{}:8080/", bracketed(address));
        let answer = lab.sh("toolbox", &format!("curl -gsS --max-time 20 '{url}'"));
        let seen: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(host(&seen["client"]), toolbox.ips[family], "{seen}");
    }
    let service = lab.kubectl_json(&["get", "service", "echo"]);
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap();
    let seen = container.ask(&format!("http://{}/", bracketed(cluster_ip)));
    assert!(seen["pod"].as_str().unwrap().starts_with("echo-"), "{seen}");
}

/// The addresses are given back, and the links go.
fn leaves_nothing(lab: &Lab, node: &str, before: &str) {
    lab.until("what the containers had is gone", || {
        (attachments(lab, node) == before).then_some(())
    });
}

fn attachments(lab: &Lab, node: &str) -> String {
    lab.node_sh(
        node,
        "ls /var/lib/podnet/leases /var/lib/podnet/released; ip -o link | grep -o 'podnet[a-z2-7]*' | sort",
    )
}

#[test]
fn containers_of_containerd_and_podman_meet_the_labs_pods() {
    let lab = Lab::up("runtimes", &["--nodes", "2", "--ip-family", "dual", "-f", DEMO]);
    let shell = |script: &str| lab.node("node1", &["sh", "-c", script]);
    let runtimes = Runtimes::start(&shell);
    let before = attachments(&lab, "node1");
    let one = runtimes.start_echo(Runtime::Containerd, "one", "podnet", "");
    let two = runtimes.start_echo(Runtime::Podman, "two", "podnet", "");
    meets_the_lab(&lab, &one);
    meets_the_lab(&lab, &two);
    let seen = one.ask(&format!("http://{}:8080/", two.addresses()[0]));
    assert_eq!(host(&seen["client"]), one.addresses()[0]);
    one.remove();
    two.remove();
    leaves_nothing(&lab, "node1", &before);
}

/// loopback before us; tuning, bandwidth, firewall and portmap behind.
const CHAIN: &str = r#"{
  "cniVersion": "1.0.0", "name": "chained", "plugins": [
    {"type": "loopback", "of-somebody-else": {"kept": true}},
    {"type": "podnet-cni", "socket": "/run/podnet/cni.sock", "stateDir": "/var/lib/podnet"},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    {"type": "bandwidth", "ingressRate": 100000000, "ingressBurst": 80000000},
    {"type": "firewall", "backend": "iptables"},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]}"#;

#[test]
fn debians_plugins_chain_before_and_behind() {
    let lab = Lab::up("chained", &["--nodes", "2", "--ip-family", "dual", "-f", DEMO]);
    let shell = |script: &str| lab.node("node1", &["sh", "-c", script]);
    let runtimes = Runtimes::start(&shell);
    let before = attachments(&lab, "node1");
    // Before our own by name, so that containerd takes it.
    runtimes.run(&format!(
        "cp /usr/lib/cni/* /opt/cni/bin/ && echo '{CHAIN}' >/etc/cni/net.d/05-chained.conflist"
    ));
    let one = runtimes.start_echo(Runtime::Containerd, "one", "chained", "");
    let two = runtimes.start_echo(Runtime::Podman, "two", "chained", "-p 8088:8080");
    for container in [&one, &two] {
        meets_the_lab(&lab, container);
        assert_eq!(container.run("cat /proc/sys/net/core/somaxconn"), "500", "tuning");
        assert!(
            container.run("ip -o link show lo").contains("LOOPBACK,UP"),
            "loopback"
        );
    }
    let shaped = lab.node_sh("node1", "tc qdisc show | grep -c 'tbf.*rate 100Mbit'");
    assert_eq!(shaped.trim(), "2", "bandwidth shapes both links");
    let node = lab.kubectl_json(&["get", "node", "node1"]);
    let address = node["status"]["addresses"][0]["address"].as_str().unwrap();
    let url = format!("http://{}:8088/", bracketed(address));
    let answer = lab.node_sh("node2", &format!("curl -gsS --max-time 20 '{url}'"));
    assert!(
        answer.contains("\"protocol\""),
        "portmap leads to the container: {answer}"
    );
    one.remove();
    two.remove();
    leaves_nothing(&lab, "node1", &before);
}

/// The same without us: what Debian's plugins leave by themselves (chains, that the node forwards) is theirs.
const WITHOUT_US: &str = r#"{
  "cniVersion": "1.0.0", "name": "theirs", "plugins": [
    {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]}},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    {"type": "bandwidth", "ingressRate": 100000000, "ingressBurst": 80000000},
    {"type": "firewall", "backend": "iptables"},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]}"#;

#[test]
fn cleanup_after_containerd_podman_and_chained_plugins_leaves_the_machine_as_it_was() {
    let machine = Machine::start();
    let shell = |script: &str| machine.shell(script);
    let runtimes = Runtimes::start(&shell);
    runtimes.run(&format!(
        "cp /usr/lib/cni/* /opt/cni/bin/ && echo '{WITHOUT_US}' >/etc/cni/net.d/30-theirs.conflist
         echo '{CHAIN}' >/etc/cni/net.d/20-chained.conflist"
    ));
    let theirs = runtimes.start_echo(Runtime::Podman, "theirs", "theirs", "-p 8087:8080");
    theirs.remove();
    let before = machine.snapshot();
    machine.start_agent();
    assert_ne!(
        machine.snapshot(),
        before,
        "the snapshot sees what the agent does"
    );
    let one = runtimes.start_echo(Runtime::Containerd, "one", "podnet", "");
    let two = runtimes.start_echo(Runtime::Podman, "two", "podnet", "");
    let three = runtimes.start_echo(Runtime::Podman, "three", "chained", "-p 8088:8080");
    for to in [&two, &three] {
        for family in 0..2 {
            let (from, to) = (&one.addresses()[family], &to.addresses()[family]);
            let seen = one.ask(&format!("http://{}:8080/", bracketed(to)));
            assert_eq!(host(&seen["client"]), *from);
        }
    }
    three.remove();
    one.remove();
    // The other one is still there when everything of podnet's is taken away.
    let removed = machine.clean_up();
    assert!(removed.contains("removed link podnet"), "{removed}");
    machine.assert_as(&before);
    drop(runtimes);
    assert!(
        machine
            .run(&format!("{} cleanup", env!("CARGO_BIN_EXE_podnet")))
            .contains("nothing of podnet")
    );
}

/// All on `cbr0`.
const BRIDGED: &str = r#"{
  "cniVersion": "1.0.0", "name": "bridged", "plugins": [
    {"type": "podnet-cni", "socket": "/run/podnet/cni.sock", "stateDir": "/var/lib/podnet", "wiring": "bridge",
     "capabilities": {"portMappings": true}}
  ]}"#;

#[test]
fn cleanup_puts_back_every_setting_of_a_machine_that_was_no_kubernetes_node() {
    let machine = Machine::start();
    machine.run(&format!(
        "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables
         echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
         echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
         echo 1 >/proc/sys/net/ipv4/conf/eth0/forwarding
         echo '{BRIDGED}' >/etc/cni/net.d/20-bridged.conflist"
    ));
    let shell = |script: &str| machine.shell(script);
    let runtimes = Runtimes::start(&shell);
    let before = machine.snapshot();
    for setting in [
        "net.ipv4.ip_forward = 0",
        "net.ipv6.conf.all.forwarding = 0",
        "net.ipv6.conf.eth0.accept_ra = 1",
        "net.netfilter.nf_conntrack_tcp_be_liberal = 0",
        "net.bridge.bridge-nf-call-iptables = 0",
    ] {
        assert!(before.lines().any(|line| line == setting), "{setting}");
    }
    machine.start_agent();
    let one = runtimes.start_echo(Runtime::Containerd, "one", "podnet", "");
    let two = runtimes.start_echo(Runtime::Podman, "two", "bridged", "-p 8088:8080");
    for family in 0..2 {
        let (from, to) = (&one.addresses()[family], &two.addresses()[family]);
        let seen = one.ask(&format!("http://{}:8080/", bracketed(to)));
        assert_eq!(host(&seen["client"]), *from);
    }
    let during = machine.snapshot();
    assert!(during.contains("net.bridge.bridge-nf-call-iptables = 1"));
    assert!(during.contains("net.ipv4.ip_forward = 1"));
    let removed = machine.clean_up();
    assert!(
        removed.contains("setting net/bridge/bridge-nf-call-ip6tables = 1, which was 0"),
        "{removed}"
    );
    machine.assert_as(&before);
}
