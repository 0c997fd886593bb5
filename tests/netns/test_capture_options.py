# SPDX-License-Identifier: Apache-2.0
"""What the options of a pod do to its traffic, by each kind of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import APP_PORT, RESOLVER_PORT, dial, seen
from tests.netns.test_capture import PROXY_MARK

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.cli.demo_mesh import Journal
    from ztunnel_py.cli.topology import Mesh, Pod

RESOLVER = "198.51.100.53"
COUNTERS = """
table inet watch {
    counter captured {}
    counter captured_apart {}
    counter proxy {}
    counter proxy_apart {}
    chain output {
        type filter hook output priority 0;
        udp dport 15053 counter name captured
        udp dport 15053 ct zone 1 counter name captured_apart
        udp dport 53 counter name proxy
        udp dport 53 ct zone 1 counter name proxy_apart
    }
}
"""


@pytest.mark.spec("redir-43")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_ingress_mode_leaves_plaintext_to_the_application_and_hbone_to_the_proxy(
    mesh: Mesh,
    journals: dict[str, Journal],
    clean: Callable[[str], Pod],
    backend: str,
    family: str,
) -> None:
    server = clean("server")
    client, address = mesh.pod("client"), getattr(server, family)
    server.enrol("--ingress", backend=backend)

    plain = dial(client, address, APP_PORT)
    hbone = dial(client, address, 15008)
    source = ("--source", getattr(client, family))
    inner = dial(server, address, APP_PORT, *PROXY_MARK, *source)
    out = dial(server, getattr(client, family), APP_PORT)

    assert (plain["answered"], hbone["answered"]) == (APP_PORT, 15008)
    assert seen(journals["server"], inner)["source"] == [getattr(client, family), inner["local"][1]]
    assert out["answered"] == 15001


@pytest.mark.spec("redir-44")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_a_virtual_interface_brings_goes_out_by_the_proxy(
    mesh: Mesh,
    journals: dict[str, Journal],
    clean: Callable[[str], Pod],
    backend: str,
    family: str,
) -> None:
    server = clean("server")
    address = getattr(server, family)
    server.enrol("--virtual-interface", "eth0", backend=backend)

    event = dial(mesh.pod("client"), address, APP_PORT)

    report = seen(journals["server"], event)
    assert report["port"] == event["answered"] == 15001
    assert report["wanted"] == [address, APP_PORT]


@pytest.mark.spec("redir-41")
def test_queries_of_the_proxy_are_tracked_apart_from_captured_ones(
    mesh: Mesh, journals: dict[str, Journal], clean: Callable[[str], Pod], backend: str
) -> None:
    client = clean("client")
    client.enrol("--dns", backend=backend)
    client.run(["nft", "-f", "-"], text_in=COUNTERS)

    captured = dial(client, RESOLVER, RESOLVER_PORT, "--udp")
    asked = dial(client, mesh.pod("bare").ipv4, RESOLVER_PORT, "--udp", *PROXY_MARK)

    listed = client.run(["nft", "list", "counters", "table", "inet", "watch"]).stdout.split()
    client.run(["nft", "delete", "table", "inet", "watch"])
    counts = [int(listed[i + 1]) for i, word in enumerate(listed) if word == "packets"]
    assert (captured["answered"], asked["answered"]) == (15053, RESOLVER_PORT)
    assert counts == [1, 0, 1, 1]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_without_ipv6_rules_ipv6_is_left_alone(
    mesh: Mesh,
    journals: dict[str, Journal],
    clean: Callable[[str], Pod],
    backend: str,
    family: str,
) -> None:
    client = clean("client")
    client.enrol("--dns", "--no-ipv6", backend=backend)

    event = dial(client, getattr(mesh.pod("bare"), family), APP_PORT)

    assert event["answered"] == (15001 if family == "ipv4" else APP_PORT)
