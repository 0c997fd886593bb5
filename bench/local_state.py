# SPDX-License-Identifier: Apache-2.0
"""Writes the local state file of ztunnel and of programs like it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from ztunnel_py.cli.topology import Pod

NAMESPACE = "bench"
_OTHERS = ipaddress.IPv4Address("10.128.0.0")


def account(pod: Pod) -> str:
    """The service account of a pod: its name."""
    return pod.name


def write(file: TextIO, pods: tuple[Pod, Pod], n_others: int) -> None:
    """Writes the two pods and `n_others` workloads that take no part."""
    write_workloads(file, n_others)
    for pod in pods:
        file.writelines(workload(pod.name, pod.ipv4, pod.node))


def write_workloads(file: TextIO, n_others: int) -> None:
    """Begins the list of workloads with those that take no part; more may follow."""
    file.write("workloads:\n")
    for i in range(n_others):
        file.writelines(workload(f"other-{i}", str(_OTHERS + i), f"node-{i % 250}"))


def workload(
    name: str, address: str, node: str, services: str = "{}", protocol: str = "HBONE"
) -> Iterator[str]:
    """The lines of one workload; `services` is YAML of one line."""
    # written by hand: a YAML library takes minutes for 70,000 of them
    yield f"- uid: cluster1//v1/Pod/{NAMESPACE}/{name}\n"
    yield f"  name: {name}\n"
    yield f"  namespace: {NAMESPACE}\n"
    yield f"  serviceAccount: {name}\n"
    yield "  trustDomain: cluster.local\n"
    yield f"  workloadName: {name}\n"
    yield "  workloadType: pod\n"
    yield f"  canonicalName: {name}\n"
    yield "  canonicalRevision: latest\n"
    yield "  clusterId: Kubernetes\n"
    yield f'  workloadIps: ["{address}"]\n'
    yield f"  node: {node}\n"
    yield f"  protocol: {protocol}\n"
    yield f"  services: {services}\n"
