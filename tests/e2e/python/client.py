"""The Python client from PyPI against `podnet apiserver`: create, read, patch, watch, conflicts, errors, custom objects."""

import json
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

config.load_kube_config()
core = client.CoreV1Api()
apps = client.AppsV1Api()


def refused(code, call, *args, **kwargs):
    """The Status with which a call is refused."""
    try:
        call(*args, **kwargs)
    except ApiException as error:
        assert error.status == code, error
        return json.loads(error.body)
    raise AssertionError("not refused")


def watching():
    """A watch sees what happens, in order."""
    seen = []
    start = core.list_namespaced_config_map("default").metadata.resource_version

    def follow():
        stream = watch.Watch().stream(
            core.list_namespaced_config_map, "default", resource_version=start, timeout_seconds=30
        )
        for event in stream:
            seen.append((event["type"], event["object"].metadata.name, event["object"].data))
            if event["type"] == "DELETED":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="watched"), data={"a": "1"})
    core.create_namespaced_config_map("default", body)
    core.patch_namespaced_config_map("watched", "default", {"data": {"a": "2", "b": "3"}})
    core.patch_namespaced_config_map("watched", "default", {"data": {"a": None}})
    core.delete_namespaced_config_map("watched", "default")
    thread.join(60)
    assert seen == [
        ("ADDED", "watched", {"a": "1"}),
        ("MODIFIED", "watched", {"a": "2", "b": "3"}),
        ("MODIFIED", "watched", {"b": "3"}),
        ("DELETED", "watched", {"b": "3"}),
    ], seen


def deployments():
    """Typed objects go out and come back, with defaults; status and scale are subresources."""
    container = client.V1Container(name="echo", image="podnet/echo")
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(
        replicas=2, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template
    )
    body = client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    made = apps.create_namespaced_deployment("default", body)
    assert made.spec.strategy.type == "RollingUpdate"
    assert made.spec.template.spec.containers[0].image_pull_policy == "Always"
    status = refused(409, apps.create_namespaced_deployment, "default", body)
    assert status["message"] == 'deployments.apps "web" already exists', status
    apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 4}})
    assert apps.read_namespaced_deployment_scale("web", "default").spec.replicas == 4
    apps.patch_namespaced_deployment_status("web", "default", {"status": {"replicas": 1}, "spec": {"replicas": 9}})
    read = apps.read_namespaced_deployment("web", "default")
    assert (read.status.replicas, read.spec.replicas) == (1, 4), read
    wrong = client.V1Deployment(metadata=client.V1ObjectMeta(name="Wrong"), spec=spec)
    status = refused(422, apps.create_namespaced_deployment, "default", wrong)
    assert status["reason"] == "Invalid" and status["details"]["causes"][0]["field"] == "metadata.name", status
    stale = apps.read_namespaced_deployment("web", "default")
    apps.patch_namespaced_deployment("web", "default", {"metadata": {"labels": {"a": "b"}}})
    status = refused(409, apps.replace_namespaced_deployment, "web", "default", stale)
    assert status["reason"] == "Conflict", status
    apps.delete_namespaced_deployment("web", "default")
    refused(404, apps.read_namespaced_deployment, "web", "default")


def pages():
    """A list comes in pages, all of one revision."""
    for i in range(5):
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page{i}", labels={"page": "yes"}))
        core.create_namespaced_config_map("default", body)
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map("default", label_selector="page=yes", limit=2, _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert names == [f"page{i}" for i in range(5)], names


def custom_objects():
    """A definition made here is served, and found by discovery."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }
    client.ApiextensionsV1Api().create_custom_resource_definition(definition)
    things = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="example.com/v1", kind="Thing")
    body = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"n": 1, "x": 2}}
    made = things.create(body=body, namespace="default")
    assert made.spec.to_dict() == {"n": 1}, made
    body["metadata"]["name"], body["spec"] = "b", {"n": "one"}
    custom = client.CustomObjectsApi()
    status = refused(422, custom.create_namespaced_custom_object, "example.com", "v1", "default", "things", body)
    assert 'must be of type integer: "string"' in status["message"], status


watching()
deployments()
pages()
custom_objects()
