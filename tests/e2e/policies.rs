//! Network policies in a whole lab: from the API through the agents to the pods.

use crate::support::{DEMO, Lab, stdout, text};

/// The demo's echo pods let in who has the label role=friend, and nobody else.
const FENCE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fence}
spec:
  podSelector: {matchLabels: {app: echo}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: friend}}}]
      ports: [{port: http}]
";

const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: late}}
  policyTypes: [Ingress, Egress]
";

const LATE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: late, labels: {app: late}}
spec:
  containers: [{name: shell, image: host, command: [sleep, infinity]}]
";

/// What of the kind this version reads; the API server has it from whoever installs it.
const CLUSTERWIDE: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: clusternetworkpolicies.policy.networking.k8s.io
  annotations: {api-approved.kubernetes.io: unapproved}
spec:
  group: policy.networking.k8s.io
  scope: Cluster
  names: {kind: ClusterNetworkPolicy, plural: clusternetworkpolicies, singular: clusternetworkpolicy}
  versions:
    - name: v1alpha2
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const BARRED: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: barred}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress:
    - action: Deny
      from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: toolbox}}}}]
";

fn answers(lab: &Lab, from: &str) -> bool {
    let address = lab.kubectl_ok(&["get", "service", "echo", "-ojsonpath={.spec.clusterIP}"]);
    let url = format!("http://{address}/");
    let output = lab.exec(from, &["curl", "-sS", "--max-time", "1", &url]);
    stdout(&output).contains("\"pod\"")
}

fn until(lab: &Lab, from: &str, wanted: bool) {
    // As often as there are endpoints, so that none is left out by chance.
    let what = if wanted {
        "every answer comes"
    } else {
        "no answer comes"
    };
    lab.until(what, || {
        (0..6).all(|_| answers(lab, from) == wanted).then_some(())
    });
}

#[test]
fn policies_are_in_force_as_they_come_change_and_go() {
    let lab = Lab::up("policies", &["--nodes", "2", "-f", DEMO]);
    until(&lab, "toolbox", true);
    let applied = lab.apply_output(FENCE);
    assert!(
        applied.status.success() && !text(&applied).contains("Warning"),
        "{}",
        text(&applied)
    );
    until(&lab, "toolbox", false);
    // Kubelet's probes go on: what a node sends to its own pods is no policy's business.
    lab.kubectl_ok(&["label", "pod", "toolbox", "role=friend"]);
    until(&lab, "toolbox", true);
    lab.kubectl_ok(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app=echo",
        "--timeout=20s",
    ]);

    // One that is closed when it begins; the others are not.
    lab.apply(CLOSED);
    lab.apply(LATE);
    lab.kubectl_ok(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]);
    assert!(!answers(&lab, "late"));
    until(&lab, "toolbox", true);

    // A kind that comes while everything runs.
    lab.apply(CLUSTERWIDE);
    lab.until("the kind is served", || {
        lab.apply_output(BARRED).status.success().then_some(())
    });
    until(&lab, "toolbox", false);
    lab.kubectl_ok(&["delete", "clusternetworkpolicy", "barred"]);
    until(&lab, "toolbox", true);

    // An agent that starts puts the same in force, and opens nothing meanwhile.
    lab.kubectl_ok(&["label", "pod", "toolbox", "role-"]);
    until(&lab, "toolbox", false);
    for pid in lab.pids("podnet agent") {
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
    }
    for _ in 0..20 {
        assert!(!answers(&lab, "toolbox"));
    }
    lab.kubectl_ok(&["delete", "networkpolicy", "fence", "closed"]);
    until(&lab, "toolbox", true);
    until(&lab, "late", true);
    lab.down();
}
