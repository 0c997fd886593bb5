# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered by Helm itself. Source: spec identity-ops, section F."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ztunnel_py import __version__

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/ztunnel"
HELM = "helm.sh/helm/v3/cmd/helm@v3.18.4"
HELMS_LABELS = {"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": f"ztunnel-{__version__}"}
BUILD_S = 540

pytestmark = [pytest.mark.xdist_group("helm"), pytest.mark.timeout(BUILD_S + 30)]

Objects = dict[str, dict[str, Any]]
"""By kind."""


@pytest.fixture(scope="session")
def helm() -> str:
    """The program; Go builds it where it is not installed, which takes minutes the first time."""
    if found := shutil.which("helm"):
        return found
    if shutil.which("go") is None:
        pytest.skip("THE CHART IS NOT RENDERED HERE: there is neither helm nor go")
    folder = ROOT / "build/bin"
    env = {**os.environ, "GOBIN": str(folder)}
    argv = ["nice", "-n", "19", "go", "install", HELM]  # tests beside it are not to wait
    try:
        subprocess.run(argv, env=env, capture_output=True, text=True, timeout=BUILD_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        why = str(error.stderr or "").strip().splitlines()[-1:]
        pytest.skip(f"THE CHART IS NOT RENDERED HERE: go cannot build helm: {error}: {why}")
    return str(folder / "helm")


def template(helm: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """What Helm makes of the chart with some values."""
    options = [word for setting in settings for word in ("--set", setting)]
    argv = [helm, "template", "ztunnel", str(CHART), "--namespace", "istio-system", *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def render(helm: str, *settings: str) -> Objects:
    """The objects that come of it."""
    done = template(helm, *settings)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}


def pod(objects: Objects) -> dict[str, Any]:
    """The spec of the DaemonSet's pods."""
    found: dict[str, Any] = objects["DaemonSet"]["spec"]["template"]["spec"]
    return found


def container(objects: Objects) -> dict[str, Any]:
    """Their one container."""
    (found,) = pod(objects)["containers"]
    return dict(found)


def env(objects: Objects) -> dict[str, Any]:
    """Its variables: the value, or what it is taken from."""
    listed = container(objects)["env"]
    assert len({one["name"] for one in listed}) == len(listed)
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in listed}


def without_helms_labels(found: Any) -> Any:
    """The object without the labels that only Helm puts there."""
    match found:
        case dict():
            kept = {k: v for k, v in found.items() if HELMS_LABELS.get(k) != v}
            return {key: without_helms_labels(value) for key, value in kept.items()}
        case list():
            return [without_helms_labels(one) for one in found]
    return found


def test_defaults_are_the_plain_manifests(helm: str) -> None:
    plain = (ROOT / "deploy/manifests/ztunnel.yaml").read_text()

    rendered = without_helms_labels(render(helm))

    assert rendered == {one["kind"]: one for one in yaml.safe_load_all(plain)}


VARIABLES = {
    "revision": (["revision=canary"], {"XDS_ADDRESS": "istiod-canary.istio-system.svc:15012"}),
    "namespace": (["istioNamespace=mesh"], {"CA_ADDRESS": "istiod.mesh.svc:15012"}),
    "addresses": (
        ["revision=canary", "caAddress=ca:1", "xdsAddress=xds:2"],
        {"CA_ADDRESS": "ca:1", "XDS_ADDRESS": "xds:2"},
    ),
    "log": (["logAsJson=true", "logLevel=debug"], {"LOG_FORMAT": "json", "RUST_LOG": "debug"}),
    "network": (["network=east"], {"NETWORK": "east"}),
    "global": (["global.network=east"], {"NETWORK": "east"}),
    "over global": (["global.network=east", "network=west"], {"NETWORK": "west"}),
    "cluster": (["multiCluster.clusterName=c1"], {"ISTIO_META_CLUSTER_ID": "c1"}),
    "own": (["env.IPV6_ENABLED=false"], {"IPV6_ENABLED": "false"}),
    "profile": (["profile=ambient"], {"ISTIO_META_ENABLE_HBONE": "true"}),
    "grace": (["terminationGracePeriodSeconds=60"], {"TERMINATION_GRACE_PERIOD_SECONDS": "60"}),
    "revocation": (
        ["peerCaCrl.enabled=true"],
        {"CRL_PATH": "/var/run/secrets/istio/crl/ca-crl.pem"},
    ),
    "limit": (
        ["resources.limits.cpu=2"],
        {
            "ZTUNNEL_RESOURCE_CPU_LIMIT": {
                "resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}
            }
        },
    ),
}


@pytest.mark.parametrize(("settings", "expected"), VARIABLES.values(), ids=VARIABLES)
def test_value_that_becomes_a_variable(
    settings: list[str], expected: dict[str, Any], helm: str
) -> None:
    found = env(render(helm, *settings))

    assert {name: found.get(name) for name in expected} == expected


IMAGES = {
    "hub=h,tag=t": "h/ztunnel:t",
    "hub=h,tag=t,variant=slim": "h/ztunnel:t-slim",
    "image=elsewhere/proxy:1": "elsewhere/proxy:1",
}


@pytest.mark.parametrize(("settings", "image"), IMAGES.items(), ids=IMAGES)
def test_image(settings: str, image: str, helm: str) -> None:
    assert container(render(helm, settings))["image"] == image


def test_revocation_lists_are_mounted(helm: str) -> None:
    objects = render(helm, "peerCaCrl.enabled=true")

    assert pod(objects)["volumes"][-1] == {
        "name": "crl-volume",
        "configMap": {"name": "istio-ca-crl", "optional": True},
    }
    assert container(objects)["volumeMounts"][-1] == {
        "name": "crl-volume",
        "mountPath": "/var/run/secrets/istio/crl",
        "readOnly": True,
    }


def test_roots_may_come_from_a_trust_bundle(helm: str) -> None:
    (roots, *_) = pod(render(helm, "env.ENABLE_CLUSTER_TRUST_BUNDLE_API=true"))["volumes"]

    bundle = {"name": "istio.io:istiod-ca:root-cert", "path": "root-cert.pem"}
    assert roots == {
        "name": "istiod-ca-cert",
        "projected": {"sources": [{"clusterTrustBundle": bundle}]},
    }


def test_network_policy_admits_the_proxys_ports(helm: str) -> None:
    policy = render(helm, "global.networkPolicy.enabled=true")["NetworkPolicy"]["spec"]

    admitted = {
        (port["protocol"], port["port"]) for rule in policy["ingress"] for port in rule["ports"]
    }
    tcp = {15000, 15001, 15006, 15008, 15020, 15021, 15053}
    assert admitted == {("UDP", 15053), *(("TCP", port) for port in tcp)}
    assert policy["egress"] == [{}]
    assert policy["podSelector"] == {"matchLabels": {"app": "ztunnel"}}


def test_platforms_add_what_they_need_and_yield_to_what_is_set(helm: str) -> None:
    gke, told = (
        render(helm, "platform=gke"),
        render(helm, "platform=gke", "resourceQuotas.enabled=false"),
    )
    openshift = render(helm, "platform=openshift")

    assert gke["ResourceQuota"]["spec"]["hard"] == {"pods": "5000"}
    assert "ResourceQuota" not in told
    assert container(openshift)["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    (rule,) = openshift["ClusterRole"]["rules"]
    assert rule["resourceNames"] == ["privileged"]
    assert openshift["ClusterRoleBinding"]["subjects"][0]["name"] == "ztunnel"


def test_halves_of_the_chart_are_for_two_people(helm: str) -> None:
    cluster, namespace = (
        set(render(helm, "platform=openshift", f"resourceScope={scope}"))
        for scope in ("cluster", "namespace")
    )

    assert cluster == {"ClusterRole", "ClusterRoleBinding"}
    assert namespace == {"ServiceAccount", "DaemonSet"}


@pytest.mark.parametrize("kind", ["profile", "platform", "compatibilityVersion"])
def test_unknown_preset_is_refused_by_name(kind: str, helm: str) -> None:
    done = template(helm, f"{kind}=nonsense")

    assert done.returncode != 0
    assert f'unknown {kind} "nonsense"; there are: ' in done.stderr
