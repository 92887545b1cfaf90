//! A further range of cluster IPs, in a whole lab: through the API, the agents and the kernel.

use crate::support::{DEMO, Lab, stdout, text};

const FURTHER: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: further}
spec: {cidrs: [10.111.0.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: fixed}
spec:
  clusterIP: 10.111.0.10
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
";

/// How curl ends from the toolbox: 0 with an answer, 7 refused, 28 nothing came back.
fn curl(lab: &Lab, address: &str) -> Option<i32> {
    let url = format!("http://{address}/");
    let output = lab.exec("toolbox", &["curl", "-sS", "--max-time", "2", &url]);
    output.status.code()
}

fn ranges_in_the_kernel(lab: &Lab, node: &str) -> bool {
    lab.node_sh(node, "nft list table inet podnet")
        .contains("10.111.0.0/24 drop")
        && stdout(&lab.node(node, &["ip", "route", "show", "10.111.0.0/24"])).contains("10.111.0.0/24")
}

#[test]
fn a_service_with_an_address_of_a_second_service_cidr_is_reached_without_a_restart() {
    let lab = Lab::up("cidrs", &["--nodes", "2", "--dataplane", "nftables", "-f", DEMO]);
    let shown = lab.kubectl_ok(&["get", "servicecidrs"]);
    assert!(shown.starts_with("NAME") && shown.contains("CIDRS"), "{shown}");
    assert!(shown.contains("kubernetes"), "{shown}");
    let early = lab.apply_output(FURTHER.split("---").nth(1).unwrap());
    assert!(
        !early.status.success() && text(&early).contains("make a ServiceCIDR"),
        "{}",
        text(&early)
    );

    lab.apply(FURTHER);
    lab.until("an answer from the service", || {
        (curl(&lab, "10.111.0.10") == Some(0)).then_some(())
    });
    // The range is guarded as the first one: what no service has goes nowhere.
    for node in ["node1", "node2"] {
        lab.until("the range in the kernel", || {
            ranges_in_the_kernel(&lab, node).then_some(())
        });
    }
    assert_eq!(curl(&lab, "10.111.0.11"), Some(28));
    assert_eq!(curl(&lab, "10.111.0.10:81"), Some(7));
    let parent = lab.kubectl_ok(&["get", "ip", "10.111.0.10"]);
    assert!(
        parent.contains("PARENTREF") && parent.contains("services/default/fixed"),
        "{parent}"
    );

    // Deleted, it waits for the service, which goes on; then it leaves the kernel, too.
    lab.kubectl_ok(&["delete", "servicecidr", "further", "--wait=false"]);
    let why = lab.kubectl_ok(&[
        "get",
        "servicecidr",
        "further",
        "-ojsonpath={.status.conditions[0].reason}",
    ]);
    assert_eq!(why, "Terminating");
    assert_eq!(curl(&lab, "10.111.0.10"), Some(0));
    lab.kubectl_ok(&["delete", "service", "fixed"]);
    let gone = lab.kubectl(&["get", "servicecidr", "further"]);
    assert!(text(&gone).contains("NotFound"), "{}", text(&gone));
    for node in ["node1", "node2"] {
        lab.until("the range leaves the kernel", || {
            (!ranges_in_the_kernel(&lab, node)).then_some(())
        });
    }
    lab.down();
}
