//! Flows of datagrams when what they lead to changes: those of services, by whichever address of the node, and no others.

use podnet_core::cluster::{Affinity, Family, Routing, Service};
use podnet_dataplane::{Dataplane, Kernel};

use crate::common::{BackEnd, Lab, ask};

on_every_back_end!(
    flows_by_an_address_that_the_api_does_not_know_follow_their_endpoints,
    a_flow_that_somebody_else_translated_goes_on,
    an_endpoint_that_goes_takes_no_other_endpoints_flows_along,
);

const A: (usize, u8) = (0, 2);
const B: (usize, u8) = (0, 3);

/// A node with the pods `a` and `b`.
fn lab(on: BackEnd) -> Lab {
    let lab = Lab::new(1, Routing::Direct, Family::V4, 1500).carried_by(on);
    for ((node, host), name) in [(A, "a"), (B, "b")] {
        lab.pod(node, host).serve(name, 8080);
    }
    lab
}

/// By an agent that goes on, and knows what it applied last.
fn follow(lab: &mut Lab, kernel: &mut Kernel, pods: &[(usize, u8)], change: impl FnOnce(&mut Service)) {
    lab.exposed(1, pods, change);
    let state = lab.state(0);
    let applied = lab.nodes[0].run(|| kernel.follow(&state).unwrap());
    assert_eq!(applied.refused, Vec::<String>::new());
}

fn flows_by_an_address_that_the_api_does_not_know_follow_their_endpoints(on: BackEnd) {
    let mut lab = lab(on);
    lab.nodes[0].address("eth0", "172.30.0.111/24");
    lab.nodes[0].address("eth0", "fd30::111/64");
    let mut kernel = lab.nodes[0].run(|| lab.nodes[0].kernel(on.name()));
    for affinity in [Affinity::None, Affinity::ClientIp { seconds: 600 }] {
        for to in ["172.30.0.111:30001", "[fd30::111]:30001"] {
            let stay = |service: &mut Service| service.affinity = affinity;
            follow(&mut lab, &mut kernel, &[], stay);
            let socket = lab.underlay.udp_socket(to);
            assert!(ask(&socket).is_err(), "{to}");
            for (pod, name) in [(A, "a"), (B, "b")] {
                follow(&mut lab, &mut kernel, &[pod], stay);
                assert_eq!(ask(&socket).unwrap().0, name, "{to} {affinity:?}");
            }
        }
    }
}

fn an_endpoint_that_goes_takes_no_other_endpoints_flows_along(on: BackEnd) {
    const C: (usize, u8) = (0, 4);
    let mut lab = lab(on);
    lab.pod(C.0, C.1).serve("c", 8080);
    let client = lab.pod(0, 9);
    let mut kernel = lab.nodes[0].run(|| lab.nodes[0].kernel(on.name()));
    follow(&mut lab, &mut kernel, &[A, B, C], |_| {});
    let inside = ["10.96.0.1:80", "[fd00:10:96::1]:80"].map(|to| (&client, to));
    let outside = ["172.30.0.11:30001", "[fd30::11]:30001"];
    let sockets: Vec<_> = inside
        .into_iter()
        .flat_map(|way| [way; 10])
        .map(|(from, to)| (to, from.udp_socket(to)))
        .chain(
            outside
                .into_iter()
                .flat_map(|to| [to; 10])
                .map(|to| (to, lab.underlay.udp_socket(to))),
        )
        .collect();
    let before: Vec<String> = sockets.iter().map(|(_, socket)| ask(socket).unwrap().0).collect();
    // That an endpoint has no flow of forty has a probability of 1 in 10^7.
    for name in ["a", "b", "c"] {
        assert!(before.iter().any(|who| who == name), "{before:?}");
    }
    follow(&mut lab, &mut kernel, &[A, C], |_| {});
    for ((to, socket), before) in sockets.iter().zip(before) {
        let now = ask(socket).unwrap().0;
        match before.as_str() {
            "b" => assert_ne!(now, "b", "{to}"),
            _ => assert_eq!(now, before, "{to}"),
        }
    }
}

fn a_flow_that_somebody_else_translated_goes_on(on: BackEnd) {
    let mut lab = lab(on);
    let container = lab.pod(0, 9);
    container.serve("container", 8080);
    // It answers from there.
    container.command(
        "ip address add 192.0.2.5/32 dev lo; \
         ip route add 172.30.0.0/24 $(ip route show default | grep -o 'via.*') src 192.0.2.5",
    );
    lab.nodes[0].command(
        "ip route add 192.0.2.5/32 via 10.244.0.9; \
         nft 'add table inet theirs; add chain inet theirs c { type nat hook prerouting priority dstnat; }; \
         add rule inet theirs c udp dport 5353 dnat ip to 192.0.2.5:8080'",
    );
    lab.exposed(1, &[A], |_| {});
    lab.apply_all();
    let socket = lab.underlay.udp_socket("172.30.0.11:5353");
    assert_eq!(ask(&socket).unwrap().0, "container");
    let flow = |lab: &Lab| {
        lab.nodes[0]
            .command("conntrack -L -p udp --orig-port-dst 5353 -o id 2>/dev/null | grep -o ' id=[0-9]*'")
    };
    let before = flow(&lab);
    // By one that knows nothing of what was, and looks at every flow.
    lab.exposed(1, &[B], |_| {});
    lab.apply_all();
    assert_eq!(flow(&lab), before);
    assert_eq!(ask(&socket).unwrap().0, "container");
}
