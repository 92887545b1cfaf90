use serde_json::json;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NOW: &str = "2026-01-01T01:00:00Z";

fn pod_row(status: Value) -> String {
    pod_with(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        status,
        json!({}),
    )
}

fn pod_with(spec: Value, status: Value, metadata: Value) -> String {
    let mut object = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
        "status": status});
    for (key, value) in entries(&metadata) {
        object["metadata"][key] = value.clone();
    }
    let row = pod(&object, at(NOW));
    assert_eq!(row.len(), POD.len());
    row.iter()
        .skip(1)
        .take(4)
        .map(text)
        .collect::<Vec<_>>()
        .join(" | ")
}

#[test]
fn the_status_of_a_pod_reads_as_in_kubernetes() {
    let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
    let waiting =
        |reason: &str| json!({"ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}});
    let done = json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let cases = [
        (json!({"phase": "Pending"}), "0/2 | Pending | 0 | 60m"),
        (
            json!({"phase": "Running", "containerStatuses": [running, running]}),
            "2/2 | Running | 0 | 60m",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [waiting("ErrImageNeverPull"), running]}),
            "1/2 | ErrImageNeverPull | 0 | 60m",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating"), waiting("x")]}),
            "0/2 | ContainerCreating | 0 | 60m",
        ),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                   "containerStatuses": [done, running]}),
            "1/2 | Running | 0 | 60m",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [done, running]}),
            "1/2 | NotReady | 0 | 60m",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [done, done]}),
            "0/2 | Completed | 0 | 60m",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            "0/2 | ExitCode:3 | 0 | 60m",
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted"}),
            "0/2 | Evicted | 0 | 60m",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running, {"restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:54:30Z"}}}]}),
            "1/2 | CrashLoopBackOff | 3 (5m30s ago) | 60m",
        ),
    ];
    for (status, want) in cases {
        assert_eq!(pod_row(status), want);
    }
}

#[test]
fn init_containers_and_sidecars_count() {
    let spec = json!({"containers": [{"name": "a"}],
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    let cases = [
        (
            json!([{"name": "i", "state": {"running": {}}}]),
            "0/2 | Init:0/2 | 0 | 60m",
        ),
        (
            json!([{"name": "i", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}]),
            "0/2 | Init:CrashLoopBackOff | 1 | 60m",
        ),
        (
            json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
            "0/2 | Init:Error | 0 | 60m",
        ),
        (
            json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}},
                   {"name": "s", "started": true, "ready": true, "state": {"running": {}}}]),
            "1/2 | Pending | 0 | 60m",
        ),
    ];
    for (statuses, want) in cases {
        let status = json!({"phase": "Pending", "initContainerStatuses": statuses});
        assert_eq!(pod_with(spec.clone(), status, json!({})), want);
    }
}

#[test]
fn a_pod_that_is_deleted_is_terminating_until_it_ended() {
    let deleted = json!({"deletionTimestamp": NOW});
    let spec = json!({"containers": [{}]});
    assert_eq!(
        pod_with(spec.clone(), json!({"phase": "Running"}), deleted.clone()),
        "0/1 | Terminating | 0 | 60m"
    );
    assert_eq!(
        pod_with(spec, json!({"phase": "Succeeded"}), deleted),
        "0/1 | Succeeded | 0 | 60m"
    );
}

#[test]
fn services_show_addresses_and_ports() {
    let row = |spec: Value| {
        service(&json!({"metadata": {"name": "s"}, "spec": spec}), at(NOW))
            .iter()
            .map(|c| text(c).to_owned())
            .collect::<Vec<_>>()
            .join(" | ")
    };
    assert_eq!(
        row(
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 443, "protocol": "TCP"}]})
        ),
        "s | ClusterIP | 10.96.0.1 | <none> | 443/TCP | <unknown> | <none>"
    );
    assert_eq!(
        row(
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.2"], "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]})
        ),
        "s | LoadBalancer | 10.96.0.2 | <pending> | 80:30080/TCP,53/UDP | <unknown> | a=1,b=2"
    );
    assert_eq!(
        row(json!({"type": "ExternalName", "externalName": "a.b"})),
        "s | ExternalName | <none> | a.b | <none> | <unknown> | <none>"
    );
}

#[test]
fn long_lists_are_cut() {
    let object = json!({"metadata": {"name": "e"}, "subsets": [{
        "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]}]});
    assert_eq!(
        endpoints(&object, at(NOW))[1],
        "10.0.0.1:80,10.0.0.1:81,10.0.0.2:80 + 1 more..."
    );
    let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": []});
    assert_eq!(
        endpoint_slice(&slice, at(NOW))[2..4],
        [json!("<unset>"), json!("<unset>")]
    );
}

#[test]
fn nodes_show_readiness_and_roles() {
    let object = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "",
            "node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "False"}],
            "addresses": [{"type": "InternalIP", "address": "172.30.0.10"}], "nodeInfo": {"kubeletVersion": "v1"}}});
    let row = node(&object, at(NOW));
    assert_eq!(row.len(), NODE.len());
    assert_eq!(row[1], "NotReady,SchedulingDisabled");
    assert_eq!(row[2], "control-plane,worker");
    assert_eq!(
        row[5..8],
        [json!("172.30.0.10"), json!("<none>"), json!("<unknown>")]
    );
}

#[test]
fn every_row_has_a_cell_for_every_column() {
    for kind in crate::kinds::builtin() {
        let row = (kind.row)(&json!({"metadata": {"name": "x"}}), at(NOW));
        assert_eq!(row.len(), kind.columns.len(), "{}", kind.kind);
    }
}

#[test]
fn events_of_both_groups_read_the_same() {
    let core = json!({"metadata": {"name": "e"}, "lastTimestamp": "2026-01-01T00:59:00Z", "type": "Normal",
        "reason": "Started", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "hello\n", "count": 2});
    let new = json!({"metadata": {"name": "e"}, "deprecatedLastTimestamp": "2026-01-01T00:59:00Z", "type": "Normal",
        "reason": "Started", "regarding": {"kind": "Pod", "name": "p"}, "note": "hello\n", "deprecatedCount": 2});
    let row = event(&core, at(NOW));
    assert_eq!(row, event(&new, at(NOW)));
    assert_eq!(
        row[0..4],
        [json!("60s"), json!("Normal"), json!("Started"), json!("pod/p")]
    );
    assert_eq!(row[6], "hello");
}
