# SPDX-License-Identifier: Apache-2.0
"""What the rules do to traffic: bare sockets stand where the proxy and the application would be.

The listeners carry no mark, as those of a dedicated proxy do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.netns.conftest import APP_PORT, RESOLVER_PORT, dial, seen
from ztunnel_py.cli.topology import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ztunnel_py.cli.demo_mesh import Event, Journal
    from ztunnel_py.cli.topology import Mesh, Namespace, Pod

PROXY_MARK = ("--mark", "1337")
PROBE = "169.254.7.127"
FOREIGN = {"ipv4": "203.0.113.9", "ipv6": "2001:db8::9"}


@pytest.fixture(scope="module")
def captured(mesh: Mesh, journals: dict[str, Journal], backend: str) -> Iterator[Mesh]:
    """The mesh with all pods enrolled, DNS included, by each kind of programs."""
    for pod in mesh.pods.values():
        pod.enrol("--dns", backend=backend)
    yield mesh
    for pod in mesh.pods.values():
        pod.unenrol()


@pytest.fixture(params=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> str:
    """Each family, by the name of the pod's address."""
    return str(request.param)


def address(pod: Pod, family: str) -> str:
    """The pod's address of a family."""
    return str(getattr(pod, family))


@pytest.mark.spec("redir-30")
def test_outbound_reaches_15001_with_the_destination_dialled(
    captured: Mesh, journals: dict[str, Journal], family: str
) -> None:
    client, server = captured.pod("client"), address(captured.pod("server"), family)

    event = dial(client, server, APP_PORT)

    report = seen(journals["client"], event)
    assert report["port"] == event["answered"] == 15001
    assert report["wanted"] == [server, APP_PORT]
    assert report["source"][0] == address(client, family)
    assert event["remote"] == [server, APP_PORT]


@pytest.mark.spec("redir-31")
def test_inbound_plaintext_reaches_15006_with_the_destination_dialled(
    captured: Mesh, journals: dict[str, Journal], family: str
) -> None:
    client, server = captured.pod("client"), address(captured.pod("server"), family)

    event = dial(client, server, APP_PORT, *PROXY_MARK)

    report = seen(journals["server"], event)
    assert report["port"] == 15006
    assert report["wanted"] == [server, APP_PORT]
    assert report["source"] == event["local"]


@pytest.mark.spec("redir-32")
def test_inbound_hbone_is_not_translated(
    captured: Mesh, journals: dict[str, Journal], family: str
) -> None:
    client, server = captured.pod("client"), address(captured.pod("server"), family)

    event = dial(client, server, 15008, *PROXY_MARK)

    report = seen(journals["server"], event)
    assert report["port"] == 15008
    assert report["wanted"] == [server, 15008]


@pytest.mark.spec("redir-27")
@pytest.mark.parametrize(("port", "options"), [(APP_PORT, ()), (RESOLVER_PORT, ("--udp",))])
def test_marked_sockets_are_not_redirected(
    captured: Mesh,
    journals: dict[str, Journal],
    backend: str,
    port: int,
    options: tuple[str, ...],
) -> None:
    client, bare = captured.pod("client"), captured.pod("bare")
    bare.unenrol()  # the far side has to answer itself

    event = dial(client, bare.ipv4, port, *PROXY_MARK, *options)

    bare.enrol("--dns", backend=backend)
    assert seen(journals["bare"], event)["source"][0] == client.ipv4
    assert event["answered"] == port


def test_application_sees_the_clients_address(
    captured: Mesh, journals: dict[str, Journal], family: str
) -> None:
    server, client = captured.pod("server"), address(captured.pod("client"), family)

    event = dial(server, address(server, family), APP_PORT, *PROXY_MARK, "--source", client)

    report = seen(journals["server"], event)
    assert report["port"] == event["answered"] == APP_PORT
    assert report["source"] == [client, event["local"][1]]


def test_application_sees_an_address_that_has_no_route(captured: Mesh, family: str) -> None:
    server = captured.pod("server")
    source = ("--source", FOREIGN[family])

    event = dial(server, address(server, family), APP_PORT, *PROXY_MARK, *source)

    assert event["answered"] == APP_PORT


@pytest.mark.spec("redir-38")
@pytest.mark.parametrize("host", ["ipv4", "ipv6", "127.0.0.1", "::1", "127.0.0.9"])
def test_pod_reaches_itself_without_the_proxy(captured: Mesh, host: str) -> None:
    client = captured.pod("client")

    event = dial(client, getattr(client, host, host), APP_PORT)

    assert event["answered"] == APP_PORT


@pytest.mark.spec("redir-40")
@pytest.mark.parametrize("options", [(), ("--udp",)])
def test_dns_reaches_15053_and_the_resolver_seems_to_answer(
    captured: Mesh, journals: dict[str, Journal], family: str, options: tuple[str, ...]
) -> None:
    resolver = {"ipv4": "198.51.100.53", "ipv6": "2001:db8::53"}[family]

    event = dial(captured.pod("client"), resolver, 53, *options)

    assert event["answered"] == seen(journals["client"], event)["port"] == 15053
    assert event["remote"] == [resolver, 53]


@pytest.mark.spec("redir-45")
def test_without_a_proxy_connections_are_refused(captured: Mesh, family: str) -> None:
    event = dial(captured.pod("bare"), address(captured.pod("server"), family), APP_PORT)

    assert event == {"error": "ConnectionRefusedError"}


def test_probe_of_the_node_reaches_the_application(captured: Mesh) -> None:
    node, client = captured.node("node-a"), captured.pod("client")
    node.run(["ip", "address", "replace", f"{PROBE}/32", "dev", "lo"])

    event = dial(node, client.ipv4, APP_PORT, "--source", PROBE)

    assert event["answered"] == APP_PORT


def packets(space: Namespace, comment: str) -> int:
    """How many packets met the counting rule with this comment."""
    lines = space.run(["iptables-nft-save", "-c", "-t", "mangle"]).stdout.splitlines()
    (line,) = [line for line in lines if f"--comment {comment} " in f"{line} "]
    return int(line[1 : line.index(":")])


def count(space: Namespace, comment: str, chain: str, *matches: str) -> None:
    """Adds a rule that only counts."""
    rule = ["-p", "tcp", *matches, "-m", "comment", "--comment", comment]
    space.run(["iptables-nft", "-t", "mangle", "-A", chain, *rule])


@pytest.mark.spec("redir-28")
def test_proxys_connection_to_its_pod_is_marked_from_the_first_packet(
    clean: Callable[[str], Pod], journals: dict[str, Journal]
) -> None:
    pod = clean("bare")
    pod.enrol(backend="iptables-nft")
    mark = ("-m", "connmark", "--mark", "0x111/0xfff")
    count(pod, "first-all", "INPUT", "--dport", str(APP_PORT), "--syn")
    count(pod, "first-marked", "INPUT", "--dport", str(APP_PORT), "--syn", *mark)

    dial(pod, pod.ipv4, APP_PORT, *PROXY_MARK, "--source", FOREIGN["ipv4"])

    counts = packets(pod, "first-all"), packets(pod, "first-marked")
    pod.run(["iptables-nft", "-t", "mangle", "-F", "INPUT"])
    assert counts == (1, 1)


@pytest.mark.spec("redir-29")
def test_marks_do_not_leave_the_pod(mesh: Mesh, journals: dict[str, Journal]) -> None:
    node, client = mesh.node("node-a"), mesh.pod("client")
    count(node, "leaving", "FORWARD", "-s", client.ipv4)
    count(node, "leaving-unmarked", "FORWARD", "-s", client.ipv4, "-m", "mark", "--mark", "0")

    dial(client, mesh.pod("server").ipv4, APP_PORT, *PROXY_MARK)

    counts = packets(node, "leaving"), packets(node, "leaving-unmarked")
    node.run(["iptables-nft", "-t", "mangle", "-F", "FORWARD"])
    assert counts[0] == counts[1] > 0


PIECES = {
    "mark": ["true"],
    "policy rule": ["ip", "rule", "del", "pref", "32764"],
    "route": ["ip", "route", "flush", "table", "100"],
    "mark of the connection": ["iptables-nft", "-t", "mangle", "-F", "ISTIO_PRERT"],
    "mark of the reply": ["iptables-nft", "-t", "mangle", "-F", "ISTIO_OUTPUT"],
}


@pytest.mark.spec("redir-34")
@pytest.mark.parametrize("piece", PIECES)
def test_clients_address_needs_every_piece(
    clean: Callable[[str], Pod], journals: dict[str, Journal], piece: str
) -> None:
    pod = clean("bare")
    pod.enrol(backend="iptables-nft")
    options = ["--source", FOREIGN["ipv4"]]

    def connect(*mark: str) -> Event:
        return dial(pod, pod.ipv4, APP_PORT, *options, *mark)

    assert connect(*PROXY_MARK).get("answered") == APP_PORT

    pod.run(PIECES[piece])

    assert connect(*(() if piece == "mark" else PROXY_MARK)) == {"error": "TimeoutError"}


def test_enrolling_without_loopback_is_a_clear_error(mesh: Mesh) -> None:
    pod = mesh.pod("bare")
    pod.run(["ip", "link", "set", "lo", "down"])

    with pytest.raises(TopologyError, match="is lo up"):
        pod.enrol()

    pod.run(["ip", "link", "set", "lo", "up"])
