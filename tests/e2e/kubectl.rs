//! Debian's kubectl against the real `podnet apiserver`, and `podnet controller` where its work is needed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::control_plane::{ControlPlane, Process};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: echo
        image: podnet/echo
        ports: [{containerPort: 8080, name: http}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"#;

#[test]
fn apply_creates_then_changes_nothing_then_changes() {
    let plane = ControlPlane::start();
    let apply = ["apply", "-f", "-"];
    assert_eq!(
        plane.ok_with(apply, WEB),
        "deployment.apps/web created\nservice/web created"
    );
    assert_eq!(
        plane.ok_with(apply, WEB),
        "deployment.apps/web unchanged\nservice/web unchanged"
    );
    let changed = WEB
        .replace("replicas: 3", "replicas: 2")
        .replace("port: 80,", "port: 81,");
    assert_eq!(
        plane.ok_with(apply, &changed),
        "deployment.apps/web configured\nservice/web configured"
    );
    let path = "jsonpath={.spec.replicas} {.spec.strategy.rollingUpdate.maxSurge} {.metadata.generation}";
    assert_eq!(plane.ok(["get", "deploy", "web", "-o", path]), "2 25% 2");
    // The list is merged by its key, so the old port is gone and the new one is alone.
    let path = "jsonpath={.spec.ports[*].port} {.spec.ports[*].protocol} {.spec.type}";
    assert_eq!(plane.ok(["get", "svc", "web", "-o", path]), "81 TCP ClusterIP");
    // What a manifest no longer says is removed.
    let portless = changed.replace("        ports: [{containerPort: 8080, name: http}]\n", "");
    plane.ok_with(apply, &portless);
    let path = "jsonpath={.spec.template.spec.containers[0].ports}";
    assert_eq!(plane.ok(["get", "deploy", "web", "-o", path]), "");
}

#[test]
fn edit_changes_what_the_editor_changed() {
    let plane = ControlPlane::start();
    plane.ok_with(["create", "-f", "-"], WEB);
    let editor = plane.dir().join("editor");
    std::fs::write(
        &editor,
        "#!/bin/sh\nexec sed -i s,image:.podnet/echo,image:\\ host, \"$1\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = plane
        .command(["edit", "deploy", "web"])
        .env("KUBE_EDITOR", &editor)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "deployment.apps/web edited"
    );
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(plane.ok(["get", "deploy", "web", "-o", path]), "host");
}

#[test]
fn a_watch_prints_every_change() {
    let plane = ControlPlane::start();
    plane.ok(["create", "configmap", "one", "--from-literal=a=b"]);
    let mut child = plane
        .command(["get", "configmaps", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _watch = Process(child);
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(next(), "one 1");
    plane.ok(["create", "configmap", "two"]);
    assert_eq!(next(), "two 0");
    plane.ok(["patch", "configmap", "two", "-p", r#"{"data":{"a":"1","b":"2"}}"#]);
    assert_eq!(next(), "two 2");
    plane.ok(["delete", "configmap", "one"]);
    assert_eq!(next(), "one 1");
}

#[test]
fn label_annotate_scale_and_select() {
    let plane = ControlPlane::start();
    plane.ok_with(["create", "-f", "-"], WEB);
    assert_eq!(
        plane.ok(["label", "deploy", "web", "tier=front"]),
        "deployment.apps/web labeled"
    );
    plane.ok(["annotate", "deploy", "web", "note=hello"]);
    assert_eq!(
        plane.ok(["scale", "deploy", "web", "--replicas=5"]),
        "deployment.apps/web scaled"
    );
    let path = "jsonpath={.spec.replicas} {.metadata.labels.tier} {.metadata.annotations.note}";
    assert_eq!(plane.ok(["get", "deploy", "web", "-o", path]), "5 front hello");
    assert_eq!(
        plane.ok(["get", "deploy", "-l", "tier in (front,back)", "-o", "name"]),
        "deployment.apps/web"
    );
    assert_eq!(plane.ok(["get", "deploy", "-l", "tier!=front", "-o", "name"]), "");
    assert_eq!(
        plane.ok(["get", "svc", "--field-selector=metadata.name=web", "-o", "name"]),
        "service/web"
    );
    plane.ok(["label", "deploy", "web", "tier-"]);
    assert_eq!(plane.ok(["get", "deploy", "-l", "tier", "-o", "name"]), "");
    let wrong = plane.refused(
        ["scale", "deploy", "web", "--replicas=5", "--current-replicas=4"],
        "",
    );
    assert!(wrong.contains("Expected replicas to be 4, was 5"), "{wrong}");
}

#[test]
fn tables_explanations_and_dry_runs() {
    let plane = ControlPlane::start();
    plane.ok_with(["create", "-f", "-"], WEB);
    let wide = plane.ok(["get", "deploy", "-o", "wide"]);
    let header: Vec<&str> = wide.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        [
            "NAME",
            "READY",
            "UP-TO-DATE",
            "AVAILABLE",
            "AGE",
            "CONTAINERS",
            "IMAGES",
            "SELECTOR"
        ]
    );
    assert!(wide.contains("web    0/3") && wide.contains("app=web"), "{wide}");
    let explained = plane.ok(["explain", "pod.spec.containers.ports.containerPort"]);
    assert!(
        explained.contains("FIELD:    containerPort <integer>"),
        "{explained}"
    );
    assert_eq!(
        plane.ok(["run", "p", "--image=host", "--dry-run=server"]),
        "pod/p created (server dry run)"
    );
    assert_eq!(plane.ok(["get", "pods", "-o", "name"]), "");
    plane.ok(["run", "p", "--image=host"]);
    let path = "jsonpath={.status.phase} {.status.qosClass} {.spec.restartPolicy} {.spec.tolerations[0].tolerationSeconds}";
    assert_eq!(
        plane.ok(["get", "pod", "p", "-o", path]),
        "Pending BestEffort Always 300"
    );
}

#[test]
fn wrong_objects_are_refused_in_the_words_of_kubernetes() {
    let plane = ControlPlane::start();
    plane.ok_with(["apply", "-f", "-"], WEB);
    let apply = ["apply", "-f", "-"];
    // By kubectl itself, from the server's OpenAPI document.
    let complaint = plane.refused(apply, &WEB.replace("image:", "imagee:"));
    assert!(
        complaint.contains(r#"unknown field "imagee" in io.k8s.api.core.v1.Container"#),
        "{complaint}"
    );
    // By the server.
    let create = ["create", "--validate=false", "-f", "-"];
    let complaint = plane.refused(create, &WEB.replace("replicas: 3", "replicas: three"));
    assert!(
        complaint.contains(
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go \
             struct field DeploymentSpec.spec.replicas of type int32"
        ),
        "{complaint}"
    );
    let complaint = plane.refused(apply, &WEB.replace("app: web", "app: other"));
    assert_eq!(
        complaint,
        "The Deployment \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field \
         is immutable"
    );
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: Bad}, spec: {containers: [{name: a, ports: [{containerPort: \
               0}]}], restartPolicy: Maybe}}";
    let complaint = plane.refused(create, pod);
    assert!(
        complaint.starts_with(
            "The Pod \"Bad\" is invalid: \n* metadata.name: Invalid value: \"Bad\": a lowercase"
        )
    );
    for line in [
        "* spec.containers[0].ports[0].containerPort: Required value",
        "* spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
    ] {
        assert!(complaint.lines().any(|have| have == line), "{complaint}");
    }
    let complaint = plane.refused(["get", "pods", "--field-selector=spec.foo=1"], "");
    assert!(
        complaint.ends_with("field label not supported: spec.foo"),
        "{complaint}"
    );
    let complaint = plane.refused(["get", "pod", "none"], "");
    assert_eq!(complaint, "Error from server (NotFound): pods \"none\" not found");
    let complaint = plane.refused(["create", "namespace", "default"], "");
    assert_eq!(
        complaint,
        "Error from server (AlreadyExists): namespaces \"default\" already exists"
    );
}

#[test]
fn a_pod_may_change_its_image_and_little_else() {
    let plane = ControlPlane::start();
    plane.ok(["run", "p", "--image=a:1"]);
    plane.ok(["set", "image", "pod/p", "p=a:2"]);
    let complaint = plane.refused(["patch", "pod", "p", "-p", r#"{"spec":{"hostname":"h"}}"#], "");
    assert!(
        complaint.starts_with(
            "The Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than \
             `spec.containers[*].image`,"
        ),
        "{complaint}"
    );
}

#[test]
fn a_custom_resource_is_served_like_any_other() {
    let plane = ControlPlane::start();
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: crontabs, kind: CronTab, shortNames: [ct]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns: [{name: Cron, type: string, jsonPath: .spec.cron}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cron]
            properties:
              cron: {type: string, description: When to run}
              replicas: {type: integer, minimum: 1, default: 1}
          status: {type: object, properties: {replicas: {type: integer}}}
"#;
    plane.ok_with(["apply", "-f", "-"], definition);
    plane.ok(["wait", "--for=condition=established", "crd/crontabs.example.com"]);
    let object = "---\n{apiVersion: example.com/v1, kind: CronTab, metadata: {name: a}, spec: {cron: '* *'}}";
    assert_eq!(
        plane.ok_with(["apply", "-f", "-"], object),
        "crontab.example.com/a created"
    );
    assert_eq!(
        plane.ok_with(["apply", "-f", "-"], object),
        "crontab.example.com/a unchanged"
    );
    let row = plane.ok(["get", "ct", "--no-headers"]);
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["a", "*", "*"]);
    plane.ok(["scale", "ct", "a", "--replicas=3"]);
    let path = "jsonpath={.spec.replicas} {.metadata.generation}";
    assert_eq!(plane.ok(["get", "ct", "a", "-o", path]), "3 2");
    let wrong = "---\n{apiVersion: example.com/v1, kind: CronTab, metadata: {name: b}, spec: {replicas: 0}}";
    assert_eq!(
        plane.refused(["create", "--validate=false", "-f", "-"], wrong),
        "The CronTab \"b\" is invalid: \n* spec.cron: Required value\n* spec.replicas: Invalid value: 0: spec.replicas in \
         body should be greater than or equal to 1"
    );
    plane.ok(["delete", "crd", "crontabs.example.com"]);
    assert!(!plane.kubectl(["get", "ct"]).status.success());
}

#[test]
fn delete_and_wait() {
    let plane = ControlPlane::start();
    plane.ok_with(["create", "-f", "-"], WEB);
    assert_eq!(plane.ok(["delete", "service", "web"]), "service \"web\" deleted");
    plane.ok(["create", "configmap", "held"]);
    plane.ok([
        "patch",
        "configmap",
        "held",
        "-p",
        r#"{"metadata":{"finalizers":["example.com/hold"]}}"#,
    ]);
    plane.ok(["delete", "configmap", "held", "--wait=false"]);
    assert!(
        plane
            .ok([
                "get",
                "configmap",
                "held",
                "-o",
                "jsonpath={.metadata.deletionTimestamp}"
            ])
            .ends_with('Z')
    );
    let waiting = plane
        .command(["wait", "--for=delete", "configmap/held", "--timeout=60s"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut waiting = Process(waiting);
    // It must have seen the object: what is not there when it looks is an error to it, not a wait that is over.
    std::thread::sleep(std::time::Duration::from_secs(2));
    plane.ok([
        "patch",
        "configmap",
        "held",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/metadata/finalizers"}]"#,
    ]);
    assert!(waiting.0.wait().unwrap().success());
}

/// Says of every scheduled pod that it runs and is ready, as its node's kubelet would.
async fn play_kubelet(kubeconfig: std::path::PathBuf) {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    loop {
        for pod in pods
            .list(&ListParams::default().fields("status.phase=Pending"))
            .await
            .unwrap()
        {
            let (Some(name), Some(_)) = (&pod.metadata.name, pod.spec.and_then(|s| s.node_name)) else {
                continue;
            };
            let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "echo", "image": "podnet/echo", "imageID": "", "ready": true,
                    "restartCount": 0, "state": {"running": {}}}]}});
            // The pod may have gone meanwhile.
            drop(
                pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
                    .await,
            );
        }
        let terminating = pods.list(&ListParams::default()).await.unwrap();
        for pod in terminating
            .into_iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some())
        {
            let now = kube::api::DeleteParams::default().grace_period(0);
            drop(pods.delete(&pod.metadata.name.unwrap(), &now).await);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[test]
fn a_deployment_rolls_out() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let plane = ControlPlane::with_controllers();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.spawn(play_kubelet(plane.kubeconfig()));
    let node = r#"---
{apiVersion: v1, kind: Node, metadata: {name: node1}, status: {conditions: [{type: Ready, status: "True"}]}}"#;
    plane.ok_with(["create", "-f", "-"], node);
    plane.ok_with(["apply", "-f", "-"], WEB);
    let done = plane.ok(["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert!(
        done.ends_with("deployment \"web\" successfully rolled out"),
        "{done}"
    );
    let columns = plane.ok(["get", "deploy", "web", "--no-headers"]);
    assert!(
        columns
            .split_whitespace()
            .collect::<Vec<_>>()
            .starts_with(&["web", "3/3", "3", "3"]),
        "{columns}"
    );
    let path = "jsonpath={.items[*].status.podIP}";
    assert_eq!(
        plane.ok(["get", "pods", "-l", "app=web", "-o", path]),
        "10.244.0.5 10.244.0.5 10.244.0.5"
    );
    plane.ok(["set", "image", "deploy/web", "echo=host"]);
    plane.ok(["rollout", "status", "deploy/web", "--timeout=60s"]);
    plane.until(
        [
            "get",
            "rs",
            "-o",
            "jsonpath={.items[*].spec.replicas}",
            "--sort-by=.spec.replicas",
        ],
        "0 3",
    );
    plane.ok(["scale", "deploy", "web", "--replicas=1"]);
    plane.until(
        [
            "get",
            "pods",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}",
        ],
        "host",
    );
    plane.ok([
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app=web",
        "--timeout=60s",
    ]);
    plane.ok(["delete", "deploy", "web"]);
    plane.until(["get", "pods,rs", "-o", "name"], "");
}

#[test]
fn node_ports_are_those_of_the_range_that_is_configured() {
    let plane = ControlPlane::start_with(&["--service-node-port-range", "31000-31003"]);
    let service = |name: &str, node_port: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{type: NodePort, ports: [{{port: 80{node_port}}}]}}}}"
        )
    };
    let create = ["create", "-f", "-"];
    let mut given = std::collections::BTreeSet::new();
    plane.ok_with(create, &service("asks", ", nodePort: 31002"));
    for name in ["a", "b", "c"] {
        plane.ok_with(create, &service(name, ""));
    }
    for name in ["asks", "a", "b", "c"] {
        let path = "jsonpath={.spec.ports[0].nodePort}";
        given.insert(plane.ok(["get", "service", name, "-o", path]));
    }
    let all = ["31000", "31001", "31002", "31003"].map(str::to_owned);
    assert_eq!(given, all.into());
    let refused = plane.refused(create, &service("late", ""));
    assert!(refused.contains("31000-31003"), "{refused}");
    for (node_port, why) in [
        ("30500", "The range of valid ports is 31000-31003"),
        ("31002", "provided port is already allocated"),
    ] {
        let refused = plane.refused(create, &service("late", &format!(", nodePort: {node_port}")));
        assert!(refused.contains(why), "{refused}");
    }
    plane.ok(["delete", "service", "asks"]);
    plane.ok_with(create, &service("late", ""));
    let path = "jsonpath={.spec.ports[0].nodePort}";
    assert_eq!(plane.ok(["get", "service", "late", "-o", path]), "31002");
}
