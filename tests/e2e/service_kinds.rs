//! What a Service's object may say, as clients of it find it: through the API, the controllers, the agents and the kernel.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::services::{address, authority, curl};
use crate::support::{DEMO, Lab, stderr};

/// In front of the echo pods of the demo, but for `named`: its pods call two numbers by the same names.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: unsaid}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: four}
spec:
  type: NodePort
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec:
  type: NodePort
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  loadBalancerClass: example.org/theirs
  allocateLoadBalancerNodePorts: false
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  selector: {app: named}
  ports:
    - {name: web, port: 80, targetPort: web}
    - {name: admin, port: 81, targetPort: admin}
---
apiVersion: v1
kind: Service
metadata: {name: written}
spec:
  ports: [{port: 80, targetPort: 8080}]
";

/// A pod of the service `named`.
fn named(name: &str, web: u16, admin: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: named}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: podnet/echo
      args: ['--http', '{web}']
      ports: [{{name: web, containerPort: {web}}}]
    - name: admin
      image: podnet/echo
      args: ['--http', '{admin}']
      ports: [{{name: admin, containerPort: {admin}}}]
"
    )
}

/// The pods that answer, and by which ports of theirs; asked often enough to hear two.
fn answered(lab: &Lab, url: &str) -> BTreeSet<(String, u16)> {
    let answer = |_| {
        let answer = curl(lab, "node1", url);
        let server: SocketAddr = answer["server"].as_str().unwrap().parse().unwrap();
        (answer["pod"].as_str().unwrap().to_owned(), server.port())
    };
    (0..30).map(answer).collect()
}

fn is_echo(answer: &Value) -> bool {
    answer["pod"].as_str().unwrap().starts_with("echo-")
}

/// Waits until a URL fails as curl says with that code: 7 is a refusal, 28 silence.
fn fails(lab: &Lab, url: &str, codes: &[i32]) {
    lab.until(&format!("{url} fails"), || {
        let output = lab.node("node1", &["curl", "-sS", "-g", "--max-time", "1", url]);
        output.status.code().filter(|code| codes.contains(code))
    });
}

fn spec(lab: &Lab, service: &str) -> Value {
    lab.kubectl_json(&["get", "service", service])["spec"].take()
}

/// The URLs of a service's cluster IPs.
fn urls(lab: &Lab, service: &str) -> Vec<String> {
    let spec = spec(lab, service);
    let addresses = spec["clusterIPs"].as_array().unwrap().iter();
    let url = |address: &Value| format!("http://{}/", authority(address.as_str().unwrap(), 80));
    addresses.map(url).collect()
}

fn a_service_is_what_its_object_says(dataplane: &str) {
    let lab = Lab::up(
        &format!("kinds-{dataplane}"),
        &["--nodes", "2", "--dataplane", dataplane, "-f", DEMO],
    );
    lab.apply(&format!(
        "{SERVICES}---{}---{}",
        named("first", 8080, 9090),
        named("second", 8181, 9191)
    ));
    families(&lab);
    load_balancers(&lab);
    targets(&lab);
    headless(&lab);
    labels(&lab);
    types(&lab);
    lab.down();
}

/// `ipFamilyPolicy` and `ipFamilies`.
fn families(lab: &Lab) {
    let nodes: Vec<String> = {
        let path = "-ojsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
        let addresses = lab.kubectl_ok(&["get", "node", "node2", path]);
        addresses.split(' ').map(str::to_owned).collect()
    };
    for (service, four, six) in [
        ("unsaid", true, false),
        ("four", true, false),
        ("six", false, true),
        ("both", true, true),
    ] {
        let urls = urls(lab, service);
        let has = |six: bool| urls.iter().any(|url| url.contains('[') == six);
        assert_eq!((has(false), has(true)), (four, six), "{urls:?}");
        for url in &urls {
            assert!(is_echo(&curl(lab, "node1", url)), "{url}");
        }
        let node_port = spec(lab, service)["ports"][0]["nodePort"].as_u64().unwrap();
        for node in &nodes {
            let url = format!("http://{}/", authority(node, node_port));
            match if node.contains(':') { six } else { four } {
                true => assert!(is_echo(&curl(lab, "node1", &url)), "{url}"),
                false => fails(lab, &url, &[7]),
            }
        }
    }
    // More of them, and fewer, while it is there.
    let both = r#"{"spec": {"ipFamilyPolicy": "PreferDualStack"}}"#;
    lab.kubectl_ok(&["patch", "service", "unsaid", "-p", both]);
    let now = urls(lab, "unsaid");
    assert_eq!(now.len(), 2);
    for url in &now {
        assert!(is_echo(&curl(lab, "node1", url)), "{url}");
    }
    let one =
        r#"{"spec": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": ["ADDRESS"]}}"#;
    let first = spec(lab, "unsaid")["clusterIP"].as_str().unwrap().to_owned();
    lab.kubectl_ok(&[
        "patch",
        "service",
        "unsaid",
        "--type=merge",
        "-p",
        &one.replace("ADDRESS", &first),
    ]);
    assert!(is_echo(&curl(lab, "node1", &now[0])));
    fails(lab, &now[1], &[7, 28]);
}

/// Another controller than ours gives the addresses; nodes have no port for it.
fn load_balancers(lab: &Lab) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let services: Api<Service> = Api::default_namespaced(lab.client(&runtime));
    let gives = |mode: &str| {
        let ingress = json!([{"ip": "198.51.100.9", "ipMode": mode}]);
        let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        let params = PatchParams::default();
        let patched = services.patch_status("balanced", &params, &status);
        runtime.block_on(patched).unwrap();
    };
    let balanced = spec(lab, "balanced");
    assert_eq!(balanced["ports"][0].get("nodePort"), None, "{balanced:#}");
    let url = "http://198.51.100.9/";
    for _ in 0..2 {
        gives("VIP");
        assert!(is_echo(&curl(lab, "node1", url)));
        // What a load balancer that is a proxy has is its own: our nodes send packets there.
        gives("Proxy");
        fails(lab, url, &[7, 28]);
    }
    let status = lab.kubectl_json(&["get", "service", "balanced"])["status"].take();
    assert_eq!(status.get("conditions"), None, "it is none of ours: {status:#}");
}

/// Names of ports that stand for other numbers on other pods, ports of one protocol, and endpoints that somebody wrote.
fn targets(lab: &Lab) {
    lab.kubectl_ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/first",
        "pod/second",
        "--timeout=60s",
    ]);
    let web = urls(lab, "named").remove(0);
    let admin = web.replace(":80/", ":81/");
    for (url, first, second) in [(&web, 8080, 8181), (&admin, 9090, 9191)] {
        let both = [("first".to_owned(), first), ("second".to_owned(), second)].into();
        lab.until(&format!("both pods behind {url}"), || {
            (answered(lab, url) == both).then_some(())
        });
    }
    let written = urls(lab, "written").remove(0);
    fails(lab, &written, &[7]);
    let at = lab.kubectl_ok(&["get", "pod", "first", "-ojsonpath={.status.podIP}"]);
    let slice = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
         metadata: {{name: written-1, labels: {{kubernetes.io/service-name: written}}}}, addressType: IPv4, \
         ports: [{{port: 8080}}], endpoints: [{{addresses: [{at}]}}]}}"
    );
    lab.apply(&slice);
    assert_eq!(curl(lab, "node1", &written)["pod"], "first");
    lab.kubectl_ok(&["delete", "endpointslice", "written-1"]);
    fails(lab, &written, &[7]);
    let node = address(lab, "node2");
    let endpoints = format!(
        "{{apiVersion: v1, kind: Endpoints, metadata: {{name: written}}, \
         subsets: [{{addresses: [{{ip: {at}}}], notReadyAddresses: [{{ip: {node}}}], ports: [{{port: 8080}}]}}]}}"
    );
    lab.apply(&endpoints);
    assert_eq!(curl(lab, "node1", &written)["pod"], "first", "it is mirrored");
}

/// `clusterIP: None`: there is no address of its own, and its slices name the pods, which are reached as they are.
fn headless(lab: &Lab) {
    lab.apply(
        "{kind: Service, apiVersion: v1, metadata: {name: headless}, \
         spec: {clusterIP: None, selector: {app: named}, ports: [{port: 80, targetPort: web}]}}",
    );
    assert_eq!(spec(lab, "headless")["clusterIPs"], json!(["None"]));
    let slices = lab.until("slices of the headless service", || {
        let slices = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=headless",
        ];
        let slices = lab.kubectl_json(&[&slices[..], &["-ojson"]].concat());
        let slices = slices["items"].as_array()?.clone();
        let endpoints = slices
            .iter()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len));
        (endpoints.sum::<usize>() == 2).then_some(slices)
    });
    let mut found = BTreeSet::new();
    for slice in slices {
        for endpoint in slice["endpoints"].as_array().unwrap() {
            let at = endpoint["addresses"][0].as_str().unwrap();
            let url = format!(
                "http://{}/",
                authority(at, slice["ports"][0]["port"].as_u64().unwrap())
            );
            found.insert(curl(lab, "node1", &url)["pod"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(found, ["first", "second"].map(str::to_owned).into());
    let explained = lab.podnet(&[
        "service",
        "explain",
        "headless",
        "--kubeconfig",
        &lab.kubeconfig(),
    ]);
    assert!(
        stderr(&explained).contains("it has no cluster IP"),
        "{explained:?}"
    );
}

/// The labels by which a service is another proxy's, and nobody's.
fn labels(lab: &Lab) {
    let url = urls(lab, "four").remove(0);
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        for _ in 0..2 {
            assert!(is_echo(&curl(lab, "node1", &url)), "without {label}");
            lab.kubectl_ok(&["label", "service", "four", &format!("{label}=theirs")]);
            fails(lab, &url, &[28]);
            lab.kubectl_ok(&["label", "service", "four", &format!("{label}-")]);
        }
    }
    assert!(is_echo(&curl(lab, "node1", &url)));
}

/// A service that becomes a name, and one again.
fn types(lab: &Lab) {
    let before = spec(lab, "both");
    let urls = urls(lab, "both");
    let name = r#"{"spec": {"type": "ExternalName", "externalName": "www.example.org", "clusterIP": null,
        "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null}}"#;
    lab.kubectl_ok(&["patch", "service", "both", "--type=merge", "-p", name]);
    for url in &urls {
        fails(lab, url, &[28]);
    }
    let again = json!({"spec": {
        "type": "NodePort", "externalName": null, "ipFamilyPolicy": "RequireDualStack", "clusterIP": before["clusterIP"],
        "clusterIPs": before["clusterIPs"],
    }});
    lab.kubectl_ok(&[
        "patch",
        "service",
        "both",
        "--type=merge",
        "-p",
        &again.to_string(),
    ]);
    for url in &urls {
        assert!(is_echo(&curl(lab, "node1", url)), "{url}");
    }
    let node_port = spec(lab, "both")["ports"][0]["nodePort"].as_u64().unwrap();
    let url = format!("http://{}/", authority(&address(lab, "node2"), node_port));
    assert!(is_echo(&curl(lab, "node1", &url)));
}

#[test]
fn a_service_is_what_its_object_says_by_nftables() {
    a_service_is_what_its_object_says("nftables");
}

#[test]
fn a_service_is_what_its_object_says_by_programs() {
    a_service_is_what_its_object_says("ebpf");
}

#[test]
fn a_service_is_what_its_object_says_by_iptables() {
    a_service_is_what_its_object_says("iptables");
}

#[test]
fn a_service_is_what_its_object_says_in_user_space() {
    a_service_is_what_its_object_says("userspace");
}
