//! What services' back ends owe to each other and to others on the machine.
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{BackEnd, Lab, Machine, PATIENCE, eventually, node_name};
use podnet_core::cluster::{DataplaneName, Family, Routing};
use podnet_core::compute;
use podnet_dataplane::services::Services;
use podnet_dataplane::userspace::proxy::GATE_LINK;
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::netfilter::Netfilter;
use podnet_linux::netfilter::ipset::Element;

on_every_back_end!(
    the_kernel_has_what_the_state_says,
    what_is_cleaned_is_gone_and_what_is_theirs_stays,
    a_state_that_is_in_force_changes_nothing,
);

mod iptables {
    use super::*;

    #[test]
    fn others_changes_are_seen_and_put_back_in_legacy_tables() {
        others_changes_are_seen_and_put_back(BackEnd::IptablesLegacy, "iptables-legacy");
    }

    #[test]
    fn others_changes_are_seen_and_put_back_in_nftables() {
        others_changes_are_seen_and_put_back(BackEnd::IptablesNft, "iptables-nft");
    }

    #[test]
    fn what_was_swapped_in_a_set_is_put_back_beside_legacy_tables() {
        what_was_swapped_in_a_set_is_put_back(BackEnd::IptablesLegacy);
    }

    #[test]
    fn what_was_swapped_in_a_set_is_put_back_beside_nftables() {
        what_was_swapped_in_a_set_is_put_back(BackEnd::IptablesNft);
    }

    #[test]
    fn connections_outlive_the_switch_between_nftables_and_legacy_iptables() {
        connections_outlive_a_switch(BackEnd::Nftables, BackEnd::IptablesLegacy);
    }

    #[test]
    fn connections_outlive_the_switch_between_nftables_and_iptables_on_nftables() {
        connections_outlive_a_switch(BackEnd::Nftables, BackEnd::IptablesNft);
    }
}

mod led {
    use super::*;

    #[test]
    fn connections_outlive_the_switch_between_the_table_alone_and_programs_in_front_of_it() {
        connections_outlive_a_switch(BackEnd::Nftables, BackEnd::Ebpf);
    }

    #[test]
    fn connections_outlive_the_switch_between_iptables_and_programs() {
        connections_outlive_a_switch(BackEnd::IptablesLegacy, BackEnd::Ebpf);
    }
}

mod proxied {
    use super::*;

    #[test]
    fn connections_outlive_the_switch_between_nftables_and_user_space() {
        connections_outlive_a_switch(BackEnd::Nftables, BackEnd::Userspace);
    }

    #[test]
    fn connections_outlive_the_switch_between_legacy_iptables_and_user_space() {
        connections_outlive_a_switch(BackEnd::IptablesLegacy, BackEnd::Userspace);
    }

    #[test]
    fn connections_outlive_the_switch_between_iptables_on_nftables_and_user_space() {
        connections_outlive_a_switch(BackEnd::IptablesNft, BackEnd::Userspace);
    }
}

/// A node with the pods `a` and `b`, which two services lead to, and a client.
fn lab(on: BackEnd) -> (Lab, [Machine; 3]) {
    let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(on);
    let pods = [lab.pod(0, 2), lab.pod(0, 3), lab.pod(0, 9)];
    pods[0].serve("a", 8080);
    pods[1].serve("b", 8080);
    lab.exposed(1, &[(0, 2), (0, 3)], |_| {});
    lab.exposed(2, &[(0, 2)], |service| {
        service.affinity = podnet_core::cluster::Affinity::ClientIp { seconds: 600 };
        service.external.policy = podnet_core::cluster::ExternalPolicy::Local;
        service.external.load_balancer = vec!["203.0.113.2".parse().unwrap()];
        service.external.sources = Some(["0.0.0.0/0".parse().unwrap()].into());
    });
    lab.service(3, &[]);
    (lab, pods)
}

fn the_kernel_has_what_the_state_says(on: BackEnd) {
    let (lab, _pods) = lab(on);
    lab.apply(0);
    let state = lab.state(0);
    assert_eq!(lab.dump(0).services, Services::of(&state.services));
}

fn a_state_that_is_in_force_changes_nothing(on: BackEnd) {
    let (lab, _pods) = lab(on);
    assert!(lab.apply(0).service_changes > 0);
    assert!(lab.apply(0).is_nothing());
    let state = lab.state(0);
    let node = &lab.nodes[0];
    node.run(|| {
        let mut kernel = node.kernel(on.name());
        for _ in 0..2 {
            assert!(kernel.apply(&state).unwrap().is_nothing());
            assert!(kernel.follow(&state).unwrap().is_nothing());
        }
    });
}

fn what_is_cleaned_is_gone_and_what_is_theirs_stays(on: BackEnd) {
    let (lab, _pods) = lab(on);
    let node = &lab.nodes[0];
    let theirs = "iptables-legacy -t nat -N THEIRS; iptables-legacy -t nat -A PREROUTING -p tcp -m tcp --dport 9 -j THEIRS; \
                  ip6tables-nft -A FORWARD -s fd00:99::/64 -j ACCEPT; nft add table inet theirs";
    node.command(theirs);
    let all = || {
        let all = "iptables-legacy-save -t nat; iptables-legacy-save -t filter; ip6tables-nft-save; nft list tables";
        let text = node.command(all);
        let rules = text
            .lines()
            .filter(|line| line.starts_with("-A") || line.contains("THEIRS"));
        rules.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = all();
    lab.apply(0);
    assert_eq!(
        node.tcp("10.96.0.1:80").map(|_| ()).map_err(|error| error.kind()),
        Ok(())
    );
    let there = node.run(|| node.kernel(on.name()).present().unwrap());
    assert!(there.len() >= 2, "{there:?}");
    let gone = node.run(|| node.kernel(on.name()).clean().unwrap());
    assert_eq!(gone, there);
    assert!(node.run(|| node.kernel(on.name()).present().unwrap()).is_empty());
    assert_eq!(all(), before);
    let rest = "iptables-legacy-save; iptables-nft-save; ip6tables-legacy-save; ip6tables-nft-save; nft list ruleset";
    let rest = node.command(rest);
    assert!(!rest.to_lowercase().contains("podnet"), "{rest}");
}

fn others_changes_are_seen_and_put_back(on: BackEnd, program: &str) {
    let (lab, [_a, _b, client]) = lab(on);
    let node = &lab.nodes[0];
    let state = lab.state(0);
    let mut kernel = node.run(|| node.kernel(on.name()));
    node.run(|| kernel.apply(&state).unwrap());
    let want = lab.dump(0);
    let (tell, told) = mpsc::channel();
    let opened = &mut kernel;
    let mut monitor = node.run(move || opened.monitor().unwrap());
    std::thread::spawn(move || while monitor.wait().is_ok() && tell.send(()).is_ok() {});
    // Ourselves we do not disturb.
    let other = compute(
        &Lab::new(1, Routing::default(), Family::V4, 1500).cluster,
        &node_name(0),
    );
    node.run(|| {
        kernel
            .follow(&podnet_core::NodeState {
                services: other.services.clone(),
                ..state.clone()
            })
            .unwrap();
        kernel.follow(&state).unwrap();
    });
    assert!(
        told.recv_timeout(Duration::from_millis(1500)).is_err(),
        "a disturbance of our own"
    );
    for damage in [
        format!("{program} -t nat -F"),
        format!("{program} -t nat -F PODNET-SERVICES"),
        format!("{program} -t filter -D FORWARD 1"),
        format!("{program} -t nat -I PODNET-SERVICES -j ACCEPT"),
        format!("{program} -t nat -I PREROUTING -j PODNET-SERVICES"),
    ] {
        node.command(&damage);
        let begin = std::time::Instant::now();
        told.recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("nobody saw: {damage}"));
        println!("{damage}: seen after {:?}", begin.elapsed());
        let applied = node.run(|| kernel.apply(&state).unwrap());
        assert!(applied.service_changes > 0, "{damage}");
        assert_eq!(lab.dump(0), want, "{damage}");
        assert!(lab.apply(0).is_nothing(), "{damage}");
        assert!(client.tcp("10.96.0.1:80").is_ok(), "{damage}");
        // What came of putting it back.
        while told.recv_timeout(Duration::from_millis(700)).is_ok() {}
    }
    // A set with as many elements as before, but others: nobody announces that, but whoever looks sees it.
    let cluster_ip: IpAddr = "10.96.0.1".parse().unwrap();
    node.run(|| {
        let mut sets = Netfilter::open().unwrap();
        let of = |address| [Element::new(address)];
        sets.remove_from_set("PODNET-CLUSTER4", &of(cluster_ip)).unwrap();
        sets.add_to_set("PODNET-CLUSTER4", &of("10.96.0.77".parse().unwrap()))
            .unwrap();
        assert!(kernel.apply(&state).unwrap().service_changes > 0);
    });
    assert_eq!(lab.dump(0), want, "a changed set");
    assert!(lab.apply(0).is_nothing(), "a changed set");
}

/// Of a set nothing is seen but its size: what was swapped is found by the next full application.
fn what_was_swapped_in_a_set_is_put_back(on: BackEnd) {
    let (lab, _pods) = lab(on);
    let node = &lab.nodes[0];
    let state = lab.state(0);
    let mut kernel = node.run(|| Kernel::open(None, on.name()).unwrap());
    node.run(|| kernel.apply(&state).unwrap());
    let want = lab.dump(0);
    node.run(|| {
        let address = |text: &str| Element::new(text.parse::<std::net::IpAddr>().unwrap());
        let mut socket = Netfilter::open().unwrap();
        socket
            .remove_from_set("PODNET-CLUSTER4", &[address("10.96.0.1")])
            .unwrap();
        socket
            .add_to_set("PODNET-CLUSTER4", &[address("10.96.0.77")])
            .unwrap();
    });
    assert_ne!(lab.dump(0), want);
    assert!(node.run(|| kernel.apply(&state).unwrap()).service_changes > 0);
    assert_eq!(lab.dump(0), want);
}

/// A connection that stays.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(from: &Machine, to: &str) -> Self {
        let to: SocketAddr = to.parse().unwrap();
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection(BufReader::new(stream))
    }

    /// Ends it at once: nobody waits for what may still come.
    pub(crate) fn reset(self) {
        let linger = rustix::net::sockopt::set_socket_linger(self.0.get_ref(), Some(Duration::ZERO));
        linger.unwrap();
    }

    pub(crate) fn ask(&mut self) -> String {
        self.0.get_mut().write_all(b"?\n").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }
}

/// From one back end to another, back, and there again: what was connected stays so, and nothing of the other is left but
/// a proxy that has connections still.
fn connections_outlive_a_switch(other: BackEnd, on: BackEnd) {
    let (lab, [_a, _b, client]) = lab(on);
    let node = &lab.nodes[0];
    other.prime(node);
    let state = lab.state(0);
    let apply = |on: BackEnd| node.run(|| node.kernel(on.name()).apply(&state).unwrap());
    let present = || node.run(|| node.kernel(on.name()).present().unwrap().join("\n"));
    assert!(apply(other).refused.is_empty());
    let ways = [
        (&client, "10.96.0.1:80"),
        (&client, "[fd00:10:96::1]:80"),
        (node, "10.96.0.1:80"),
        (&lab.underlay, "172.30.0.11:30001"),
        (&lab.underlay, "[fd30::11]:30001"),
    ];
    let open = || ways.map(|(from, to)| Connection::open(from, to));
    let mut connections = vec![open()];
    let mut names: Vec<String> = connections[0].iter_mut().map(Connection::ask).collect();
    let is_alone = |now: BackEnd, proxied: bool| {
        let (rest, table) = (present(), node.command("nft list table inet podnet"));
        let is_iptables = now.name() == DataplaneName::Iptables;
        let found = [
            rest.contains("iptables"),
            rest.contains("ipset"),
            rest.contains("eBPF programs"),
            rest.contains("service proxy"),
            rest.contains(GATE_LINK),
            table.contains("10.96.0.1"),
        ];
        let is_table = [BackEnd::Nftables, BackEnd::Ebpf].contains(&now);
        found
            == [
                is_iptables,
                is_iptables,
                now == BackEnd::Ebpf,
                proxied,
                false,
                is_table,
            ]
    };
    let mut proxied = other == BackEnd::Userspace;
    for now in [on, other, on] {
        let applied = apply(now);
        // The table behind programs has everything already.
        let is_there = now == BackEnd::Nftables && [on, other].contains(&BackEnd::Ebpf);
        assert!(
            applied.refused.is_empty() && (is_there || applied.service_changes > 0),
            "{applied:?}"
        );
        connections.push(open());
        names.extend(connections.last_mut().unwrap().iter_mut().map(Connection::ask));
        let again: Vec<String> = connections.iter_mut().flatten().map(Connection::ask).collect();
        assert_eq!(again, names, "after {now:?}");
        proxied |= now == BackEnd::Userspace;
        assert!(is_alone(now, proxied), "{now:?}: {}", present());
        assert!(apply(now).is_nothing());
    }
    drop(connections);
    apply(other);
    eventually("nothing is left", || is_alone(other, false));
    for (from, to) in ways {
        assert!(from.tcp(to).is_ok(), "{to}");
    }
}
