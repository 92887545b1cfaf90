//! What probes found out of paths, put into routes and devices.

use std::process::Command;

use crate::common::{Lab, Machine};
use podnet_core::cluster::{DataplaneName, Family, Routing};
use podnet_dataplane::Kernel;
use podnet_linux::ethtool;

/// What a pod is told when it sends that many bytes, not to be fragmented.
fn refused_size(pod: &Machine, to: &str, size: u32) -> bool {
    let payload = size - if to.contains(':') { 48 } else { 28 };
    let ping = || {
        let args = ["-c", "1", "-W", "2", "-M", "do", "-s", &payload.to_string(), to];
        Command::new("ping").args(args).output().unwrap()
    };
    let said = pod.run(ping);
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    text.contains("too long") || text.contains("Frag needed") || text.contains("too big")
}

#[test]
fn a_narrow_path_is_told_to_the_sender() {
    for routing in [Routing::default(), Routing::Direct] {
        let mut lab = Lab::new(2, routing, Family::V4, 1500);
        let (here, _there) = (lab.pod(0, 2), lab.pod(1, 2));
        lab.apply_all();
        let ranges = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|range| range.parse().unwrap());
        let targets = ["10.244.1.2", "fd00:10:244:1::2"];
        for to in targets {
            // The bridge takes a moment with its ports.
            assert!((0..10).any(|_| here.ping(to)), "{to}");
            assert!(!refused_size(&here, to, 1400), "{to}");
        }
        lab.cluster.local.path_mtu = ranges.map(|range| (range, 1340)).into();
        assert_eq!(lab.apply(0).route_changes, 2);
        assert!(lab.apply(0).is_nothing());
        let known = lab.nodes[0].run(|| {
            Kernel::open(None, DataplaneName::Nftables)
                .unwrap()
                .path_mtu()
                .unwrap()
        });
        assert_eq!(known, lab.cluster.local.path_mtu, "an agent that starts knows it");
        for to in targets {
            assert!(refused_size(&here, to, 1400), "{to}");
            assert!(!refused_size(&here, to, 1340), "{to}");
        }
        lab.cluster.local.path_mtu.clear();
        assert_eq!(lab.apply(0).route_changes, 2);
        assert!(
            lab.nodes[0]
                .run(|| Kernel::open(None, DataplaneName::Nftables)
                    .unwrap()
                    .path_mtu()
                    .unwrap())
                .is_empty()
        );
    }
}

#[test]
fn checksum_offload_is_switched_off_and_stays_off() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    let offloads = |lab: &Lab| lab.nodes[0].run(|| ethtool::tx_checksum("podnet.vxlan").unwrap());
    lab.apply_all();
    assert!(offloads(&lab));
    lab.cluster.local.broken_checksums = true;
    assert_eq!(lab.apply(0).route_changes, 1);
    assert!(!offloads(&lab));
    // An agent that starts does not know why, and leaves it.
    lab.cluster.local.broken_checksums = false;
    assert!(lab.apply(0).is_nothing());
    assert!(!offloads(&lab));
}
