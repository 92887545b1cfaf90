//! Services of type LoadBalancer with addresses from pools, in a whole lab: through the API, the controller, the agents and
//! the kernel.

use serde_json::Value;

use crate::support::{DEMO, Lab, stdout};

const DEFINITION: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/crds/loadbalancerpools.podnet.io.yaml"
);

/// One for all, one for services of a tier, and one that is too small.
const POOLS: &str = r#"
apiVersion: podnet.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: common}
spec:
  ranges: [192.0.2.0-192.0.2.9, "2001:db8::/120"]
  avoidFirstAndLast: true
  announcement: {localNetwork: false}
---
apiVersion: podnet.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: gold}
spec:
  ranges: [198.51.100.0/28]
  serviceSelector:
    matchExpressions: [{key: tier, operator: In, values: [gold]}]
  announcement: {localNetwork: false}
---
apiVersion: podnet.io/v1alpha1
kind: LoadBalancerPool
metadata: {name: small}
spec:
  ranges: [203.0.113.7]
  autoAssign: false
"#;

/// A service on that port in front of the echo pods; `more` is put into its metadata and its spec.
fn service(name: &str, port: u16, metadata: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}{metadata}}}
spec:
  type: LoadBalancer
  selector: {{app: echo}}
  ports: [{{port: {port}, targetPort: http}}]
{spec}
"
    )
}

fn get(lab: &Lab, name: &str) -> Value {
    lab.kubectl_json(&["get", "service", name])
}

fn condition(service: &Value) -> Option<&Value> {
    let mut conditions = service["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == "podnet.io/AddressAssigned")
}

/// The addresses of a service, once it has all that it is to have.
fn addresses(lab: &Lab, name: &str) -> Vec<String> {
    let service = lab.until(&format!("{name} has its addresses"), || {
        let service = get(lab, name);
        (condition(&service)?["status"] == "True").then_some(service)
    });
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().unwrap();
    assert!(
        ingress.iter().all(|ingress| ingress["ipMode"] == "VIP"),
        "{ingress:?}"
    );
    let ips = ingress
        .iter()
        .map(|ingress| ingress["ip"].as_str().unwrap().to_owned());
    ips.collect()
}

/// Waits until a service says, in its condition and in an Event, that it lacks an address for that reason.
fn lacks(lab: &Lab, name: &str, reason: &str) -> String {
    lab.until(&format!("{name}: {reason}"), || {
        let service = get(lab, name);
        let condition = condition(&service)?;
        let so = condition["status"] == "False" && condition["reason"] == reason;
        let selector = format!("involvedObject.name={name},reason={reason}");
        let events = lab.kubectl_json(&["get", "events", "--field-selector", &selector]);
        let told = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["type"] == "Warning" && event["message"] == condition["message"]);
        (so && told).then(|| condition["message"].as_str().unwrap().to_owned())
    })
}

fn pool(lab: &Lab, name: &str) -> Value {
    lab.kubectl_json(&["get", "loadbalancerpool", name])["status"].take()
}

/// Asks from outside the cluster until an echo pod answers.
fn reach(lab: &Lab, address: &str, port: u16) -> Value {
    let url = match address.contains(':') {
        true => format!("http://[{address}]:{port}/"),
        false => format!("http://{address}:{port}/"),
    };
    lab.until(&format!("an answer from {url}"), || {
        let output = lab.node("underlay", &["curl", "-sS", "-g", "--max-time", "2", &url]);
        serde_json::from_str(&stdout(&output)).ok()
    })
}

#[test]
fn services_get_addresses_from_pools_share_them_lack_them_and_give_them_back() {
    let lab = Lab::up("pooled", &["--nodes", "2", "-f", DEFINITION, "-f", DEMO]);
    lab.apply(POOLS);
    // Outside, the addresses are routed to the first node.
    lab.node_sh(
        "underlay",
        "ip route add 192.0.2.0/24 via 172.30.0.11; ip route add 198.51.100.0/24 via 172.30.0.11; \
         ip -6 route add 2001:db8::/64 via fd30::b",
    );
    addresses_come_from_the_pool_that_is_for_the_service(&lab);
    addresses_are_asked_for_and_shared(&lab);
    what_cannot_be_is_told(&lab);
    addresses_go_back(&lab);
    lab.down();
}

fn addresses_come_from_the_pool_that_is_for_the_service(lab: &Lab) {
    lab.apply(&service("plain", 80, "", ""));
    lab.apply(&service("gold", 80, ", labels: {tier: gold}", ""));
    lab.apply(&service("dual", 80, "", "  ipFamilyPolicy: RequireDualStack\n"));
    lab.apply(&service(
        "other",
        80,
        "",
        "  loadBalancerClass: example.com/other\n",
    ));
    // In whichever order they were seen; the pool's first address ends in .0.
    let mut common = addresses(lab, "plain");
    reach(lab, &common[0], 80);
    let dual = addresses(lab, "dual");
    common.extend(dual.clone());
    common.sort();
    assert_eq!(common, ["192.0.2.1", "192.0.2.2", "2001:db8::"]);
    assert_eq!(addresses(lab, "gold"), ["198.51.100.0"]);
    for address in dual.iter().chain(&["198.51.100.0".to_owned()]) {
        assert!(
            reach(lab, address, 80)["pod"]
                .as_str()
                .unwrap()
                .starts_with("echo")
        );
    }
    // Whose class is another's has been seen and left alone: it is older than what has been served.
    let other = get(lab, "other");
    assert_eq!(
        other["status"]["loadBalancer"],
        serde_json::json!({}),
        "{other:#}"
    );
    assert!(condition(&other).is_none(), "{other:#}");
}

fn addresses_are_asked_for_and_shared(lab: &Lab) {
    let asks = |address: &str| {
        format!(", annotations: {{metallb.io/loadBalancerIPs: {address}, metallb.io/allow-shared-ip: k}}")
    };
    lab.apply(&service("asks", 8000, &asks("192.0.2.5"), ""));
    assert_eq!(addresses(lab, "asks"), ["192.0.2.5"]);
    lab.apply(&service("field", 80, "", "  loadBalancerIP: 192.0.2.6\n"));
    assert_eq!(addresses(lab, "field"), ["192.0.2.6"]);
    lab.apply(&service(
        "shares",
        8001,
        ", annotations: {podnet.io/sharing-key: k}",
        "",
    ));
    assert_eq!(addresses(lab, "shares"), ["192.0.2.5"]);
    for port in [8000, 8001] {
        reach(lab, "192.0.2.5", port);
    }
    // The port is taken, so the key alone does not help.
    lab.apply(&service("clash", 8001, &asks("192.0.2.5"), ""));
    let why = lacks(lab, "clash", "AddressInUse");
    assert_eq!(
        why,
        "192.0.2.5 is the address of service default/shares: both have tcp port 8001"
    );
}

fn what_cannot_be_is_told(lab: &Lab) {
    let small = ", annotations: {podnet.io/load-balancer-pool: small}";
    lab.apply(&service("first", 80, small, ""));
    assert_eq!(addresses(lab, "first"), ["203.0.113.7"]);
    lab.apply(&service("second", 80, small, ""));
    let why = lacks(lab, "second", "PoolExhausted");
    assert!(
        why.starts_with("all IPv4 addresses are given of LoadBalancerPool small"),
        "{why}"
    );
    let status = pool(lab, "small");
    assert_eq!(
        (&status["assignedIPv4"], &status["availableIPv4"]),
        (&1.into(), &0.into())
    );
    lab.apply(
        r#"{"apiVersion": "podnet.io/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "late"},
            "spec": {"ranges": ["192.0.2.8/29"]}}"#,
    );
    lab.until("a condition that names the other pool", || {
        let status = pool(lab, "late");
        let condition = &status["conditions"][0];
        let message = condition["message"].as_str()?.to_owned();
        (condition["reason"] == "Invalid" && message.contains("of the older LoadBalancerPool common"))
            .then_some(())
    });
}

fn addresses_go_back(lab: &Lab) {
    // Whoever waits gets it.
    lab.kubectl_ok(&["delete", "service", "first"]);
    assert_eq!(addresses(lab, "second"), ["203.0.113.7"]);
    lab.kubectl_ok(&["delete", "service", "shares"]);
    assert_eq!(addresses(lab, "clash"), ["192.0.2.5"]);
    lab.kubectl_ok(&[
        "patch",
        "service",
        "second",
        "-p",
        r#"{"spec": {"type": "ClusterIP"}}"#,
    ]);
    lab.until("the address is given back", || {
        let service = get(lab, "second");
        let gone = service["status"]["loadBalancer"]["ingress"].is_null() && condition(&service).is_none();
        let free = pool(lab, "small")["availableIPv4"] == 1;
        (gone && free).then_some(())
    });
}
