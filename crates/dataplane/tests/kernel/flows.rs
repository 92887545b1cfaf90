//! Flows of datagrams when what they lead to changes: those of services, by whichever address of the node, and no others.

use podnet_core::cluster::{Affinity, Family, Routing, Service};
use podnet_core::compute;
use podnet_dataplane::{Dataplane, Kernel};

use crate::common::{BackEnd, Lab, ask, node_name};

on_every_back_end!(
    flows_by_an_address_that_the_api_does_not_know_follow_their_endpoints,
    a_flow_that_somebody_else_translated_goes_on,
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
    let state = compute(&lab.cluster, &node_name(0));
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
