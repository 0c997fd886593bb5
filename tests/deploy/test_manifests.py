# SPDX-License-Identifier: Apache-2.0
"""The plain manifests, field by field. Source: spec identity-ops, sections F.2 to F.6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ztunnel_py import __version__

ROOT = Path(__file__).parents[2]
OBJECTS = {
    o["kind"]: o for o in yaml.safe_load_all((ROOT / "deploy/manifests/ztunnel.yaml").read_text())
}
DAEMON_SET = OBJECTS["DaemonSet"]["spec"]
POD = DAEMON_SET["template"]["spec"]
(CONTAINER,) = POD["containers"]
ISTIOD = "istiod.istio-system.svc:15012"


def field(path: str) -> dict[str, Any]:
    """A variable that the API server fills in."""
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def amount(path: str) -> dict[str, Any]:
    """A variable that the kubelet fills in, in whole CPUs."""
    return {"valueFrom": {"resourceFieldRef": {"resource": path, "divisor": "1"}}}


POD_FIELDS = {
    "serviceAccountName": "ztunnel",
    "priorityClassName": "system-node-critical",
    "terminationGracePeriodSeconds": 30,
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [
        {"effect": "NoSchedule", "operator": "Exists"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"effect": "NoExecute", "operator": "Exists"},
    ],
    "volumes": [
        {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
        {
            "name": "istio-token",
            "projected": {
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": "istio-ca",
                            "expirationSeconds": 43200,
                            "path": "istio-token",
                        }
                    }
                ]
            },
        },
        {
            "name": "cni-ztunnel-sock-dir",
            "hostPath": {"path": "/var/run/ztunnel", "type": "DirectoryOrCreate"},
        },
        {"name": "tmp", "emptyDir": {}},
    ],
}
CONTAINER_FIELDS = {
    "name": "istio-proxy",
    "image": f"localhost/ztunnel:{__version__}",
    "args": ["proxy", "ztunnel"],
    "ports": [{"name": "ztunnel-stats", "containerPort": 15020, "protocol": "TCP"}],
    "readinessProbe": {"httpGet": {"port": 15021, "path": "/healthz/ready"}},
    "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}},
    "securityContext": {
        "runAsUser": 0,
        "runAsGroup": 1337,
        "runAsNonRoot": False,
        "privileged": False,
        "allowPrivilegeEscalation": True,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"]},
    },
    "volumeMounts": [
        {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
        {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
        {"name": "cni-ztunnel-sock-dir", "mountPath": "/var/run/ztunnel"},
        {"name": "tmp", "mountPath": "/tmp"},
    ],
}
ENVIRONMENT = {
    "CA_ADDRESS": {"value": ISTIOD},
    "XDS_ADDRESS": {"value": ISTIOD},
    "RUST_LOG": {"value": "info"},
    "RUST_BACKTRACE": {"value": "1"},
    "ISTIO_META_CLUSTER_ID": {"value": "Kubernetes"},
    "INPOD_ENABLED": {"value": "true"},
    "TERMINATION_GRACE_PERIOD_SECONDS": {"value": "30"},
    "POD_NAME": field("metadata.name"),
    "POD_NAMESPACE": field("metadata.namespace"),
    "NODE_NAME": field("spec.nodeName"),
    "INSTANCE_IP": field("status.podIP"),
    "SERVICE_ACCOUNT": field("spec.serviceAccountName"),
    "ZTUNNEL_CPU_LIMIT": amount("limits.cpu"),
    "ZTUNNEL_RESOURCE_CPU_REQUEST": amount("requests.cpu"),
}


def test_there_is_an_account_without_permissions_and_a_daemon_set_of_its_name() -> None:
    assert set(OBJECTS) == {"ServiceAccount", "DaemonSet"}
    for one in OBJECTS.values():
        assert one["metadata"]["name"] == "ztunnel"
        assert one["metadata"]["namespace"] == "istio-system"


def test_pods_are_found_by_their_label_and_are_no_part_of_the_mesh() -> None:
    metadata = DAEMON_SET["template"]["metadata"]

    assert DAEMON_SET["selector"] == {"matchLabels": {"app": "ztunnel"}}
    assert metadata["labels"]["app"] == "ztunnel"
    assert metadata["labels"]["istio.io/dataplane-mode"] == "none"
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"] == {
        "prometheus.io/port": "15020",
        "prometheus.io/scrape": "true",
        "sidecar.istio.io/inject": "false",
    }


def test_a_new_pod_is_up_before_the_old_one_goes() -> None:
    rolling = {"maxSurge": 1, "maxUnavailable": 0}

    assert DAEMON_SET["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}


@pytest.mark.parametrize("name", sorted(POD_FIELDS.keys() | POD.keys() - {"containers"}))
def test_field_of_the_pod(name: str) -> None:
    assert POD.get(name) == POD_FIELDS.get(name)


@pytest.mark.parametrize("name", sorted(CONTAINER_FIELDS.keys() | CONTAINER.keys() - {"env"}))
def test_field_of_the_container(name: str) -> None:
    assert CONTAINER.get(name) == CONTAINER_FIELDS.get(name)


def test_environment_of_the_container() -> None:
    assert len(CONTAINER["env"]) == len(ENVIRONMENT)
    assert {one.pop("name"): one for one in map(dict, CONTAINER["env"])} == ENVIRONMENT


def test_chart_is_of_the_version_of_the_program() -> None:
    chart = yaml.safe_load((ROOT / "deploy/helm/ztunnel/Chart.yaml").read_text())

    assert (chart["name"], chart["version"], chart["appVersion"]) == ("ztunnel", *[__version__] * 2)
