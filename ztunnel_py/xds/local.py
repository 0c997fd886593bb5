# SPDX-License-Identifier: Apache-2.0
"""The local state: a YAML file, or text, in place of or before a control plane.

Keys and defaults are those of ztunnel (spec state, section 8), so one file serves both. Stricter
than it: unknown keys are errors also inside policy matches, and string matches may be written as
`!Exact x` or as `{Exact: x}`, which is how dumps show them.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py.errors import LocalStateError
from ztunnel_py.state.address import NetworkAddress
from ztunnel_py.state.policy import (
    Match,
    Policy,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel_py.state.service import (
    BalanceMode,
    CidrVip,
    Endpoint,
    HealthPolicy,
    IpFamilies,
    LoadBalancer,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_py.state.store import PolicyUpdate, ServiceUpdate, WorkloadUpdate
from ztunnel_py.state.workload import (
    NOWHERE,
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NamespacedHostname,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    Workload,
)
from ztunnel_py.xds import fields
from ztunnel_py.xds.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from ztunnel_py.state.address import Cidr
    from ztunnel_py.state.policy import Clause, Rule
    from ztunnel_py.state.store import Update

    T = TypeVar("T")

_MAX_U32 = 2**32 - 1

_TOP = frozenset({"workloads", "services", "policies"})
WORKLOAD_KEYS = frozenset(
    (
        *("workloadIps", "namespace", "services", "uid", "name", "serviceAccount", "trustDomain"),
        *("network", "node", "hostname", "protocol", "networkMode", "status", "workloadName"),
        *("workloadType", "canonicalName", "canonicalRevision", "clusterId", "nativeTunnel"),
        *("applicationTunnel", "authorizationPolicies", "locality", "waypoint"),
        *("networkGateway", "capacity"),
    )
)
SERVICE_KEYS = frozenset(
    (
        *("name", "namespace", "hostname", "vips", "cidrVips", "ports", "endpoints"),
        *("subjectAltNames", "waypoint", "weightedWaypoints", "loadBalancer", "ipFamilies"),
        *("canonical", "visibility"),
    )
)
POLICY_KEYS = frozenset({"name", "namespace", "scope", "action", "dryRun", "rules"})
_STRINGS = ("namespaces", "notNamespaces", "principals", "notPrincipals")
_ACCOUNTS = ("serviceAccounts", "notServiceAccounts")
_CIDRS = ("sourceIps", "notSourceIps", "destinationIps", "notDestinationIps")
_PORTS = ("destinationPorts", "notDestinationPorts")
_MATCH = frozenset((*_STRINGS, *_ACCOUNTS, *_CIDRS, *_PORTS))

_PROTOCOLS = fields.words_of(Protocol)
_NETWORK_MODES = fields.words_of(NetworkMode)
_HEALTH = fields.words_of(Health)
_TUNNEL_PROTOCOLS = fields.words_of(TunnelProtocol)
_SCOPES = fields.words_of(Scope)
_BALANCE_MODES = fields.words_of(BalanceMode)
_HEALTH_POLICIES = fields.words_of(HealthPolicy)
_IP_FAMILIES = fields.words_of(IpFamilies)
_VISIBILITIES = fields.words_of(Visibility)
_POLICY_SCOPES = fields.words_of(PolicyScope)
_POLICY_ACTIONS = fields.words_of(PolicyAction)
_MATCH_KINDS = fields.words_of(StringMatchKind)


class LocalState(NamedTuple):
    """A checked local state, in the order in which it is applied."""

    workloads: tuple[WorkloadUpdate, ...] = ()
    policies: tuple[PolicyUpdate, ...] = ()
    services: tuple[ServiceUpdate, ...] = ()

    @property
    def updates(self) -> Iterator[Update]:
        """What to give to `Store.apply`."""
        yield from self.workloads
        yield from self.policies
        yield from self.services


def load(path: str = "", text: str = "") -> LocalState:
    """The state of the file `path`, or of `text`; empty if both are.

    Raises:
        LocalStateError: both are given, the file is unreadable, or its content is wrong.
    """
    if path and text:
        raise LocalStateError("LOCAL_XDS_PATH and LOCAL_XDS are both set; unset one")
    if not path:
        return parse(text, "LOCAL_XDS") if text else LocalState()
    try:
        return parse(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise LocalStateError(f"LOCAL_XDS_PATH: cannot read {path}: {error}") from error


def parse(text: str, source: str) -> LocalState:
    """The state written in `text`; `source` names it in errors.

    Raises:
        LocalStateError: naming source, entry and key.
    """
    from ztunnel_py import yaml_tree  # brings PyYAML, which a start without a file does not need

    try:
        value = yaml_tree.parse(text)
    except ValueError as error:
        raise LocalStateError(f"{source}: {error}") from error
    return read({} if value is None else value, source)


def read(value: object, source: str) -> LocalState:
    """The same for a text that is parsed already.

    Raises:
        LocalStateError: naming source, entry and key.
    """
    try:
        top = Fields(value, _TOP)
        return LocalState(
            tuple(_entries(top, "workloads", _workload)),
            tuple(_entries(top, "policies", _policy)),
            tuple(_entries(top, "services", _service)),
        )
    except ValueError as error:
        raise LocalStateError(f"{source}: {error}") from error


def _entries(top: Fields, key: str, read: Callable[[object], T]) -> Iterator[T]:
    for path, entry in top.items(key, []):
        try:
            yield read(entry)
        except ValueError as error:
            raise ValueError(f"{path}{_named(entry)}: {error}") from error


def _named(entry: object) -> str:
    """What a person knows an entry by."""
    if not isinstance(entry, dict):
        return ""
    if entry.get("uid"):
        return f" (uid {entry['uid']})"
    name = entry.get("hostname") or entry.get("name")
    return f" ({entry.get('namespace', '')}/{name})" if name else ""


# --- workloads


def _workload(entry: object) -> WorkloadUpdate:
    f = Fields(entry, WORKLOAD_KEYS)
    workload = Workload(
        namespace=f.text("namespace"),
        uid=f.text("uid", ""),
        name=f.text("name", ""),
        ips=tuple(fields.ip(value, path) for path, value in f.items("workloadIps")),
        hostname=f.text("hostname", ""),
        network=f.text("network", ""),
        protocol=f.word("protocol", _PROTOCOLS, Protocol.TCP),
        network_mode=f.word("networkMode", _NETWORK_MODES, NetworkMode.STANDARD),
        health=f.word("status", _HEALTH, Health.HEALTHY),
        trust_domain=f.text("trustDomain", ""),
        service_account=f.text("serviceAccount", ""),
        node=f.text("node", ""),
        cluster_id=f.text("clusterId", ""),
        workload_name=f.text("workloadName", ""),
        workload_type=f.text("workloadType", ""),
        canonical_name=f.text("canonicalName", ""),
        canonical_revision=f.text("canonicalRevision", ""),
        locality=_locality(f),
        native_tunnel=f.flag("nativeTunnel", False),
        application_tunnel=_application_tunnel(f),
        waypoint=_gateway(f, "waypoint"),
        network_gateway=_gateway(f, "networkGateway"),
        authorization_policies=f.texts("authorizationPolicies"),
        capacity=f.number("capacity", _MAX_U32, 1),
    )
    return WorkloadUpdate(workload, dict(_memberships(f)))


def _memberships(f: Fields) -> Iterator[tuple[NamespacedHostname, dict[int, int]]]:
    for key, mapping in f.mapping("services").items():
        path = f"services[{key}]"
        yield fields.converted(NamespacedHostname.parse, key, path), fields.ports(mapping, path)


def _locality(f: Fields) -> Locality:
    if "locality" not in f:
        return NOWHERE
    part = Fields(f.value("locality"), frozenset(Locality._fields), "locality")
    return Locality(part.text("region"), part.text("zone"), part.text("subzone"))


def _application_tunnel(f: Fields) -> ApplicationTunnel | None:
    if "applicationTunnel" not in f:
        return None
    value = f.value("applicationTunnel")
    part = Fields(value, frozenset({"protocol", "port"}), "applicationTunnel")
    port = part.port("port") if "port" in part else None
    return ApplicationTunnel(part.word("protocol", _TUNNEL_PROTOCOLS), port)


def _gateway(f: Fields, key: str) -> GatewayAddress | None:
    return _gateway_address(f.value(key), f.path(key)) if key in f else None


def _gateway_address(value: object, path: str) -> GatewayAddress:
    f = Fields(value, frozenset({"destination", "hboneMtlsPort"}), path)
    destination = fields.converted(_destination, f.value("destination"), f.path("destination"))
    return GatewayAddress(destination, f.port("hboneMtlsPort"))


def _destination(text: str) -> NetworkAddress | NamespacedHostname:
    """network/ip if an IP is behind the first slash, namespace/hostname otherwise."""
    try:
        return NetworkAddress.parse(text)
    except ValueError:
        if "/" not in text:
            raise ValueError(f"{text!r} is neither network/ip nor namespace/hostname") from None
        return NamespacedHostname.parse(text)


# --- services


def _service(entry: object) -> ServiceUpdate:
    f = Fields(entry, SERVICE_KEYS)
    service = Service(
        name=f.text("name"),
        namespace=f.text("namespace"),
        hostname=f.text("hostname"),
        vips=tuple(fields.network_address(value, path) for path, value in f.items("vips")),
        cidr_vips=tuple(_cidr_vip(value, path) for path, value in f.items("cidrVips", [])),
        ports=f.ports("ports"),
        subject_alt_names=f.texts("subjectAltNames"),
        waypoint=_gateway(f, "waypoint"),
        weighted_waypoints=tuple(
            _weighted(value, path) for path, value in f.items("weightedWaypoints", [])
        ),
        load_balancer=_load_balancer(f),
        ip_families=f.word("ipFamilies", _IP_FAMILIES) if "ipFamilies" in f else None,
        canonical=f.flag("canonical", False),
        visibility=f.word("visibility", _VISIBILITIES, Visibility.PUBLIC),
    )
    return ServiceUpdate(service, tuple(_endpoints(f)))


def _endpoints(f: Fields) -> Iterator[Endpoint]:
    for uid, value in f.mapping("endpoints", {}).items():
        path = f"endpoints[{uid}]"
        part = Fields(value, frozenset({"workloadUid", "port", "status"}), path)
        health = part.word("status", _HEALTH, Health.HEALTHY)
        yield Endpoint(part.text("workloadUid"), part.ports("port"), health)


def _cidr_vip(value: object, path: str) -> CidrVip:
    f = Fields(value, frozenset({"network", "cidr"}), path)
    return CidrVip(f.text("network"), _cidr(f.value("cidr"), f.path("cidr")))


def _weighted(value: object, path: str) -> WeightedWaypoint:
    f = Fields(value, frozenset({"destination", "weight"}), path)
    destination = _gateway_address(f.value("destination"), f.path("destination"))
    return WeightedWaypoint(destination, f.number("weight", _MAX_U32))


def _load_balancer(f: Fields) -> LoadBalancer | None:
    if "loadBalancer" not in f:
        return None
    keys = frozenset({"routingPreferences", "mode", "healthPolicy"})
    part = Fields(f.value("loadBalancer"), keys, "loadBalancer")
    preferences = part.items("routingPreferences")
    return LoadBalancer(
        tuple(fields.word(value, _SCOPES, path) for path, value in preferences),
        part.word("mode", _BALANCE_MODES),
        part.word("healthPolicy", _HEALTH_POLICIES),
    )


# --- policies


def _policy(entry: object) -> PolicyUpdate:
    f = Fields(entry, POLICY_KEYS)
    policy = Policy(
        name=f.text("name"),
        namespace=f.text("namespace"),
        scope=f.word("scope", _POLICY_SCOPES),
        action=f.word("action", _POLICY_ACTIONS),
        rules=tuple(_rule(value, path) for path, value in f.items("rules")),
        is_dry_run=f.flag("dryRun"),
    )
    return PolicyUpdate(policy.key, policy)


def _rule(value: object, path: str) -> Rule:
    return tuple(_clause(clause, at) for at, clause in fields.elements(value, path))


def _clause(value: object, path: str) -> Clause:
    return tuple(_match(match, at) for at, match in fields.elements(value, path))


def _match(value: object, path: str) -> Match:
    f = Fields(value, _MATCH, path)
    names, not_names, principals, not_principals = (_list(f, k, _string_match) for k in _STRINGS)
    accounts, not_accounts = (_list(f, key, _account) for key in _ACCOUNTS)
    sources, not_sources, targets, not_targets = (_list(f, key, _cidr) for key in _CIDRS)
    ports, not_ports = (_list(f, key, fields.port) for key in _PORTS)
    return Match(
        namespaces=names,
        not_namespaces=not_names,
        principals=principals,
        not_principals=not_principals,
        service_accounts=accounts,
        not_service_accounts=not_accounts,
        source_ips=sources,
        not_source_ips=not_sources,
        destination_ips=targets,
        not_destination_ips=not_targets,
        destination_ports=ports,
        not_destination_ports=not_ports,
    )


def _list(f: Fields, key: str, read: Callable[[object, str], T]) -> tuple[T, ...]:
    return tuple(read(value, path) for path, value in f.items(key, []))


def _string_match(value: object, path: str) -> StringMatch:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{path}: expected one of !Exact, !Prefix, !Suffix, !Presence")
    ((kind_word, operand),) = value.items()
    kind = fields.word(kind_word, _MATCH_KINDS, path)
    if kind is not StringMatchKind.PRESENCE:
        return StringMatch(kind, fields.text(operand, path))
    if operand not in ([], {}, "", None):
        raise ValueError(f"{path}: Presence takes no value, write `!Presence []`")
    return StringMatch(kind)


def _account(value: object, path: str) -> ServiceAccountMatch:
    f = Fields(value, frozenset({"namespace", "serviceAccount"}), path)
    return ServiceAccountMatch(f.text("namespace"), f.text("serviceAccount"))


def _cidr(value: object, path: str) -> Cidr:
    return fields.converted(_parse_cidr, value, path)


def _parse_cidr(text: str) -> Cidr:
    """Bits behind the prefix are tolerated, as ztunnel does."""
    if not text.rpartition("/")[2].isdigit() or "/" not in text:
        raise ValueError(f"{text!r} is not an address and the length of its prefix")
    return ipaddress.ip_network(text, strict=False)
