# SPDX-License-Identifier: Apache-2.0
"""The baggage header."""

from __future__ import annotations

import pytest

from tests.state.build import pod
from ztunnel_py.decide import baggage
from ztunnel_py.decide.baggage import Baggage
from ztunnel_py.state.workload import Locality

FULL = pod(
    "a",
    cluster_id="demo",
    workload_name="cart",
    workload_type="deployment",
    canonical_name="cart",
    canonical_revision="v1",
    locality=Locality("eu", "eu-1"),
).workload
TEXT = (
    "k8s.cluster.name=demo,k8s.namespace.name=default,k8s.deployment.name=cart,"
    "service.name=cart,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
)


def test_workload_describes_itself_in_order() -> None:
    assert baggage.render(FULL) == TEXT


def test_empty_fields_are_left_out() -> None:
    assert baggage.render(pod("a").workload) == "k8s.namespace.name=default"


def test_what_is_rendered_is_parsed() -> None:
    expected = Baggage("demo", "default", "cart", "cart", "v1", "eu", "eu-1")

    assert baggage.parse([TEXT]) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, Baggage()),
        ((), Baggage()),
        (["service.name=a=b"], Baggage(service_name="a")),
        (["service.name=a,service.name="], Baggage()),
        (["service.name=a", "service.name=b"], Baggage(service_name="b")),
        (["service.name", "unknown=x", ""], Baggage()),
        ([" service.name=a"], Baggage()),
        (["k8s.cronjob.name=a", "k8s.pod.name=b"], Baggage(workload_name="b")),
    ],
)
def test_odd_headers_are_read_as_ztunnel_reads_them(
    values: list[str] | None, expected: Baggage
) -> None:
    assert baggage.parse(values) == expected
