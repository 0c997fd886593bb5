# SPDX-License-Identifier: Apache-2.0
"""What reaches the local workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.state.build import PRESENCE, ip, pod, policy, service
from tests.state.build import at as network_address
from ztunnel_py.decide import inbound
from ztunnel_py.decide.key import InboundKey, PassthroughKey
from ztunnel_py.decide.rbac import Rulebook
from ztunnel_py.decide.settings import Settings
from ztunnel_py.decide.verdict import Action, Preface
from ztunnel_py.errors import Reason
from ztunnel_py.identity.spiffe import Identity
from ztunnel_py.state.address import SockAddr
from ztunnel_py.state.policy import Match, PolicyScope
from ztunnel_py.state.service import Visibility
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import (
    ApplicationTunnel,
    GatewayAddress,
    NamespacedHostname,
    TunnelProtocol,
    WorkloadInfo,
)

if TYPE_CHECKING:
    from ztunnel_py.decide.verdict import Verdict
    from ztunnel_py.state.store import Update, WorkloadUpdate

ME = pod("me", "10.0.0.2", workload_name="me", canonical_name="me-svc")
CALLER = Identity("cluster.local", "default", "caller")
KEY = InboundKey("w", ip("10.0.0.2"), ip("10.0.0.1"), CALLER, "10.0.0.2:8080")
PLAIN = PassthroughKey("w", ip("10.0.0.1"), SockAddr.parse("10.0.0.2:8080"))
DEFAULTS = Settings()
INFO = WorkloadInfo("w", "ns", "sa")
WEB = "default/web.test"


def tunnel(protocol: TunnelProtocol, port: int | None = None) -> WorkloadUpdate:
    return pod("me", "10.0.0.2", application_tunnel=ApplicationTunnel(protocol, port))


def decide(
    *updates: Update,
    me: WorkloadUpdate = ME,
    settings: Settings = DEFAULTS,
    **key: Any,
) -> Verdict:
    store = Store()
    store.apply([me, *updates])
    return inbound.decide(store, Rulebook(store), settings, KEY._replace(**key), me.workload)


def decide_plain(*updates: Update, me: WorkloadUpdate = ME, **key: Any) -> Verdict:
    store = Store()
    store.apply([me, *updates])
    rulebook = Rulebook(store)
    return inbound.decide_passthrough(store, rulebook, DEFAULTS, PLAIN._replace(**key), me.workload)


def dialled(verdict: Verdict) -> str:
    assert verdict.action is Action.FORWARD, verdict
    return str(verdict.hops[0].address)


def refusal(verdict: Verdict) -> tuple[int, str]:
    assert verdict.action is Action.DENY
    return verdict.reason.status, verdict.reason.describe(verdict.detail)


# --- HBONE: where to


def test_own_address_is_dialled_keeping_the_clients() -> None:
    verdict = decide()

    assert dialled(verdict) == "10.0.0.2:8080"
    assert verdict.hops[0].keep_source
    assert verdict.policy == "no allow policies apply"


@pytest.mark.parametrize("authority", ["10.0.0.2", "web.test", "", "[::1"])
def test_authority_without_host_or_port_is_refused(authority: str) -> None:
    status, text = refusal(decide(authority=authority))

    assert (status, text) == (400, f"no valid authority pseudo header: {authority}")


def test_unknown_local_workload_is_refused_after_a_bad_authority() -> None:
    store = Store()
    rulebook = Rulebook(store)

    unknown = inbound.decide(store, rulebook, DEFAULTS, KEY, INFO)
    bad = inbound.decide(store, rulebook, DEFAULTS, KEY._replace(authority="x"), INFO)

    text = "failed to fetch information about local workload: sa.ns (w)"
    assert refusal(unknown) == (503, text)
    assert bad.reason is Reason.BAD_AUTHORITY


@pytest.mark.spec("dataplane-67")
@pytest.mark.parametrize("authority", ["10.0.0.3:80", "10.0.0.9:80", "[::ffff:10.0.0.2]:80"])
def test_foreign_address_is_refused(authority: str) -> None:
    status, text = refusal(decide(pod("other", "10.0.0.3"), authority=authority))

    foreign = SockAddr.parse(authority).ip
    assert (status, text) == (400, f"ip mismatch: 10.0.0.2 != {foreign}")


@pytest.mark.spec("dataplane-68")
@pytest.mark.parametrize("protocol", list(TunnelProtocol))
def test_foreign_address_is_accepted_by_an_application_that_tunnels(
    protocol: TunnelProtocol,
) -> None:
    verdict = decide(me=tunnel(protocol), authority="10.0.0.9:80")

    assert verdict.action is Action.FORWARD


def behind(reference: GatewayAddress) -> list[Update]:
    """A workload and a service that have `reference` for their waypoint."""
    return [
        pod("target", "10.0.0.3", waypoint=reference),
        service("target.test", "/10.1.0.3", waypoint=reference),
    ]


@pytest.mark.spec("dataplane-69")
@pytest.mark.parametrize("authority", ["10.0.0.3:80", "10.1.0.3:80"])
@pytest.mark.parametrize(
    ("reference", "accepted"),
    [
        (NamespacedHostname("default", "mine.test"), True),
        (NamespacedHostname("default", "theirs.test"), False),
        (NamespacedHostname("default", "absent.test"), False),
        (network_address("10.0.0.2"), True),
        (network_address("10.0.0.8"), False),
    ],
)
def test_foreign_address_is_accepted_by_its_waypoint_only(
    authority: str, reference: Any, accepted: bool
) -> None:
    verdict = decide(
        *behind(GatewayAddress(reference, 15008)),
        service("mine.test"),
        service("theirs.test"),
        pod("other", "10.0.0.8", serves={"default/theirs.test": {}}),
        me=pod("me", "10.0.0.2", serves={"default/mine.test": {}}),
        authority=authority,
    )

    assert (verdict.reason is Reason.OK) is accepted
    assert accepted or verdict.reason is Reason.IP_MISMATCH
    assert not accepted or dialled(verdict) == "10.0.0.2:80"


@pytest.mark.spec("dataplane-71")
@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_own_listeners_are_refused(port: int) -> None:
    direct = decide(authority=f"10.0.0.2:{port}")
    named = decide(service("web.test", ports={80: port}), authority="web.test:80")

    assert refusal(direct) == (503, "attempted recursive call to ourselves")
    assert refusal(named) == refusal(direct)


@pytest.mark.spec("dataplane-70")
@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("web.test:80", "10.0.0.2:9090"),
        ("web.test:81", "10.0.0.2:8081"),
        ("web.test:82", (503, "requested service web.test:82 found, but cannot resolve port")),
        ("web.test:83", (503, "requested service web.test:83 found, but cannot resolve port")),
        ("absent.test:80", (503, "no service or workload for hostname: absent.test")),
    ],
)
def test_hostname_is_resolved_to_the_workloads_own_port(authority: str, expected: object) -> None:
    verdict = decide(
        service("web.test", ports={80: 0, 81: 8081, 83: 0}),
        me=pod("me", "10.0.0.2", serves={WEB: {80: 9090}}),
        authority=authority,
    )

    is_forwarded = verdict.action is Action.FORWARD
    assert (dialled(verdict) if is_forwarded else refusal(verdict)) == expected


def test_hostname_of_a_hidden_service_is_unknown() -> None:
    hidden = service("web.test", namespace="b", visibility=Visibility.NAMESPACE)

    assert decide(hidden, authority="web.test:80").reason is Reason.UNKNOWN_HOST


# --- application tunnels


def test_proxy_tunnel_is_dialled_on_loopback_and_told_the_target() -> None:
    me = tunnel(TunnelProtocol.PROXY, 15088)

    verdict = decide(me=me, authority="10.0.0.9:80")

    assert dialled(verdict) == "127.0.0.1:15088"
    assert verdict.preface == Preface(SockAddr.parse("10.0.0.9:80"))
    assert not verdict.hops[0].keep_source


@pytest.mark.spec("dataplane-79")
def test_proxy_tunnel_without_loopback_is_dialled_at_the_pod() -> None:
    me = tunnel(TunnelProtocol.PROXY, 15088)

    verdict = decide(me=me, settings=Settings(localhost_app_tunnel=False))

    assert dialled(verdict) == "10.0.0.2:15088"
    assert verdict.preface is not None


@pytest.mark.spec("dataplane-80")
def test_tunnel_without_protocol_only_changes_the_port() -> None:
    verdict = decide(me=tunnel(TunnelProtocol.NONE, 15088))

    assert (dialled(verdict), verdict.preface) == ("10.0.0.2:15088", None)


@pytest.mark.spec("dataplane-81")
@pytest.mark.parametrize(
    ("vips", "told"),
    [
        (("/2001:db8::1", "far/10.1.0.2", "/10.1.0.1"), "10.1.0.1:80"),
        (("far/10.1.0.2", "/2001:db8::1"), "[2001:db8::1]:80"),
        (("far/10.1.0.2", "far/10.1.0.3"), "10.1.0.3:80"),
    ],
)
def test_proxy_header_names_a_vip_for_a_hostname(vips: tuple[str, ...], told: str) -> None:
    me = tunnel(TunnelProtocol.PROXY, 15088)

    verdict = decide(service("web.test", *vips), me=me, authority="web.test:80")

    assert verdict.preface == Preface(SockAddr.parse(told))


def test_proxy_header_for_a_hostname_without_vip_is_refused() -> None:
    me = tunnel(TunnelProtocol.PROXY, 15088)

    verdict = decide(service("web.test"), me=me, authority="web.test:80")

    assert refusal(verdict) == (
        503,
        "requested service web.test found, but has no IP addresses",
    )


# --- policies


@pytest.mark.spec("dataplane-87", "state-96")
@pytest.mark.parametrize(
    ("policy_port", "action"), [(8080, Action.FORWARD), (15008, Action.DENY), (80, Action.DENY)]
)
def test_policies_see_the_applications_port(policy_port: int, action: Action) -> None:
    verdict = decide(
        policy("p", Match(destination_ports=(policy_port,))),
        service("web.test", ports={80: 8080}),
        authority="web.test:80",
    )

    assert verdict.action is action


def test_refused_stream_keeps_its_labels() -> None:
    verdict = decide(policy("p", Match(principals=PRESENCE), action="Deny"))

    text = "connection closed due to policy rejection: explicitly denied by: default/p"
    assert refusal(verdict) == (401, text)
    assert verdict.hops[0].labels.source_principal == str(CALLER)
    assert (verdict.headers, verdict.preface) == ((), None)
    assert verdict.policy == "denied: default/p"


def test_baggage_and_forwarded_change_nothing_but_labels() -> None:
    only_blue = policy("p", Match(source_ips=()), rules=(((Match(destination_ports=(1,)),),),))

    said = decide(only_blue, forwarded_host="web.test", baggage=("service.name=x",), network="n")

    assert said.reason is Reason.POLICY_DENIED


# --- telemetry


def test_answer_carries_the_workloads_baggage_where_enabled() -> None:
    on, off = (decide(settings=Settings(response_baggage=b)).headers for b in (True, False))

    assert on == (("baggage", "k8s.namespace.name=default,k8s..name=me,service.name=me-svc"),)
    assert off == ()


@pytest.mark.parametrize(
    ("network", "workload", "app"),
    [(None, "known", "known-svc"), ("HOME", "known", "known-svc"), ("far", "said", "said")],
)
def test_source_is_the_known_workload_unless_it_comes_from_another_network(
    network: str | None, workload: str, app: str
) -> None:
    caller = pod("c", "10.0.0.1", network="home", workload_name="known", canonical_name="known-svc")
    said = ("k8s.deployment.name=said,service.name=said-svc",)

    verdict = decide(caller, settings=Settings(network="home"), network=network, baggage=said)

    labels, log = verdict.hops[0].labels, verdict.hops[0].log
    assert (labels.source_workload, labels.source_app) == (workload, app)
    assert labels.source_principal == log.src_identity == str(CALLER)
    assert log.src_workload == ("c" if workload == "known" else "said-svc")


def test_unreadable_or_disabled_baggage_leaves_the_identity() -> None:
    said = ("k8s.deployment.name=said",)
    verdicts = [
        decide(baggage=None),
        decide(baggage=said, settings=Settings(response_baggage=False)),
    ]

    for labels in (verdict.hops[0].labels for verdict in verdicts):
        assert (labels.source_workload, labels.source_principal) == ("", str(CALLER))


@pytest.mark.parametrize(
    ("forwarded", "authority", "expected"),
    [
        ("b.test", "10.0.0.2:8080", "b.test"),
        ("evil.test", "10.0.0.2:8080", "a.test"),
        ("", "10.0.0.2:9090", "b.test"),
        ("", "10.0.0.2:7000", ""),
        ("a.test", "b.test:90", "b.test"),
    ],
)
def test_service_is_guessed_among_those_of_the_workload(
    forwarded: str, authority: str, expected: str
) -> None:
    hosts = ("a.test", "b.test")
    me = pod(
        "me",
        "10.0.0.2",
        serves={"default/b.test": {90: 9090}},
        services=tuple(NamespacedHostname("default", host) for host in hosts),
    )
    services = [service("a.test"), service("b.test", ports={90: 0}), service("evil.test")]

    verdict = decide(*services, me=me, forwarded_host=forwarded, authority=authority)

    assert verdict.hops[0].log.dst_service == expected


# --- plaintext


def test_plaintext_is_dialled_where_it_was_going() -> None:
    verdict = decide_plain(dst=SockAddr.parse("10.7.7.7:80"))

    assert dialled(verdict) == "10.7.7.7:80"
    assert verdict.hops[0].keep_source


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("host", ["10.0.0.2", "192.0.2.1"])
def test_plaintext_to_own_listeners_is_refused_on_any_address(host: str, port: int) -> None:
    assert decide_plain(dst=SockAddr(ip(host), port)).reason is Reason.SELF_CALL


def test_plaintext_of_an_unknown_workload_is_refused() -> None:
    store = Store()

    verdict = inbound.decide_passthrough(store, Rulebook(store), DEFAULTS, PLAIN, INFO)

    assert verdict.reason is Reason.UNKNOWN_WORKLOAD


@pytest.mark.parametrize("scope", list(PolicyScope))
def test_plaintext_is_refused_where_an_identity_is_required(scope: PolicyScope) -> None:
    required = Match(not_principals=PRESENCE)
    namespace = "" if scope is PolicyScope.GLOBAL else "default"
    made = policy("p", required, action="Deny", scope=scope, namespace=namespace)
    me = pod("me", "10.0.0.2", authorization_policies=("default/p",))

    assert refusal(decide_plain(made, me=me))[0] == 401
    assert decide(made, me=me).action is Action.FORWARD


def test_plaintext_has_a_destination_principal_but_logs_no_identity() -> None:
    verdict = decide_plain(pod("c", "10.0.0.1", workload_name="c-deploy"))

    labels, log = verdict.hops[0].labels, verdict.hops[0].log
    assert labels.destination_principal == "spiffe://cluster.local/ns/default/sa/me"
    assert (labels.source_principal, labels.source_workload) == ("", "c-deploy")
    assert labels.connection_security_policy == "unknown"
    assert (log.src_identity, log.dst_identity, log.src_workload) == ("", "", "c")
