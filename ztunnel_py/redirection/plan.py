# SPDX-License-Identifier: Apache-2.0
"""Which rules lead a pod's traffic to the proxy: a list, in order, that knows no program.

    chain            packets                                             what becomes of them
    mangle PREROUTING  of the proxy (mark 0x539)                         connection marked 0x111
    mangle OUTPUT      of a connection marked 0x111                      packet marked 0x111
    nat PREROUTING     probes of the node                                pass
                       TCP from elsewhere, but for 15008                 to 15006
    nat OUTPUT         answers to probes, replies, the pod to itself     pass
                       DNS, if captured                                  to 15053
                       any other TCP, but for the proxy's                to 15001
    raw                the proxy's own DNS                               a conntrack zone of its own

A packet marked 0x111 is routed by table 100, where every address is local (`routes.py`).
Source: spec redirection, sections 1 to 3.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass

PROXY_MARK = "0x539/0xfff"
"""Packets of the proxy; what other programs keep in the upper bits does not matter."""
REPLY_MARK = "0x111/0xfff"
"""Connections of the proxy to its own pod, and the replies on them."""
OUTBOUND, INBOUND, HBONE, DNS_CAPTURE = 15001, 15006, 15008, 15053
_DNS = 53
DNS_ZONE = 1
MAX_VIRTUAL_INTERFACES = 32
PROBE_V4 = ipaddress.IPv4Address("169.254.7.127")
PROBE_V6 = ipaddress.IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")

_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")
"""What the kernel allows for a name and no program of ours reads as anything else."""


class PlanError(ValueError):
    """There can be no such plan; the text is for the operator."""


class Family(enum.Enum):
    """An IP family; the value is how people call it."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


class Table(enum.Enum):
    """A table, in the order in which programs are told."""

    MANGLE = "mangle"
    NAT = "nat"
    RAW = "raw"


class Hook(enum.Enum):
    """Where packets meet rules: as they come in, and as a socket of the pod sends them."""

    PREROUTING = "prerouting"
    OUTPUT = "output"


class Place(enum.Enum):
    """An address that each family has one of."""

    LOOPBACK = "loopback"
    PROBE = "probe"


class Field(enum.Enum):
    """What a rule looks at."""

    SOURCE = "source"
    DESTINATION = "destination"
    INPUT = "input interface"
    OUTPUT = "output interface"
    PROTOCOL = "protocol"
    SOURCE_PORT = "source port"
    PORT = "destination port"
    MARK = "mark of the packet"
    CONNECTION_MARK = "mark of the connection"


@dataclass(frozen=True, slots=True)
class Match:
    """One condition: the field has this value, or has not."""

    field: Field
    value: str | int | Place
    is_not: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """Translates the destination to a port of this pod."""

    port: int


class Action(enum.Enum):
    """Everything else that a rule can do."""

    ACCEPT = "accept"
    RETURN = "return"
    MARK_CONNECTION = "mark the connection as one of the proxy to its pod"
    RESTORE_MARK = "give the packet the mark of its connection"
    OWN_ZONE = "track it apart from other packets"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of ours, and the built-in chain of that name that jumps to it."""

    table: Table
    hook: Hook


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; it means each family once if it names a `Place`."""

    chain: Chain
    matches: tuple[Match, ...]
    action: Redirect | Action
    why: str


@dataclass(frozen=True, slots=True)
class Options:
    """What differs between pods. Ports, marks and names do not."""

    has_ipv6: bool = True
    has_dns: bool = False
    is_ingress: bool = False
    """Plain TCP from elsewhere goes to the application; HBONE still to the proxy."""
    virtual_interfaces: tuple[str, ...] = ()
    """What comes in by these is traffic of a guest: it goes out by the proxy."""
    probe_v4: ipaddress.IPv4Address = PROBE_V4
    probe_v6: ipaddress.IPv6Address = PROBE_V6


@dataclass(frozen=True, slots=True)
class Plan:
    """All rules of a pod, in the order in which a packet meets them within a chain."""

    families: tuple[Family, ...]
    jumps: tuple[Chain, ...]
    """Chains of ours, in the order in which their jumps are made; some may have no rule."""
    rules: tuple[Rule, ...]
    addresses: dict[tuple[Family, Place], str]

    def of(self, chain: Chain) -> tuple[Rule, ...]:
        """The rules of one chain."""
        return tuple(rule for rule in self.rules if rule.chain == chain)


_MANGLE_IN = Chain(Table.MANGLE, Hook.PREROUTING)
_MANGLE_OUT = Chain(Table.MANGLE, Hook.OUTPUT)
_NAT_IN = Chain(Table.NAT, Hook.PREROUTING)
_NAT_OUT = Chain(Table.NAT, Hook.OUTPUT)
_RAW_IN = Chain(Table.RAW, Hook.PREROUTING)
_RAW_OUT = Chain(Table.RAW, Hook.OUTPUT)

_TCP = Match(Field.PROTOCOL, "tcp")
_UDP = Match(Field.PROTOCOL, "udp")
_OF_PROXY = Match(Field.MARK, PROXY_MARK)
_NOT_OF_PROXY = Match(Field.MARK, PROXY_MARK, is_not=True)
_ELSEWHERE = Match(Field.DESTINATION, Place.LOOPBACK, is_not=True)
_TO_DNS = Match(Field.PORT, _DNS)


def pod_plan(options: Options) -> Plan:
    """The rules for a pod.

    Raises:
        PlanError: a virtual interface has a name that no interface can have, or there are more
            than `MAX_VIRTUAL_INTERFACES`.
    """
    for name in options.virtual_interfaces:
        if not _INTERFACE.fullmatch(name):
            raise PlanError(f"{name!r} is no name of a virtual interface: 1 to 15 of A-Za-z0-9_.@-")
    if len(options.virtual_interfaces) > MAX_VIRTUAL_INTERFACES:
        raise PlanError(
            f"{len(options.virtual_interfaces)} virtual interfaces; at most "
            f"{MAX_VIRTUAL_INTERFACES} are served"
        )
    raw = (_RAW_IN, _RAW_OUT) if options.has_dns else ()
    return Plan(
        families=tuple(Family) if options.has_ipv6 else (Family.IPV4,),
        jumps=(_MANGLE_IN, _MANGLE_OUT, _NAT_OUT, *raw, _NAT_IN),
        rules=(
            Rule(
                _MANGLE_IN,
                (_OF_PROXY,),
                Action.MARK_CONNECTION,
                "what the proxy sent to its own pod",
            ),
            Rule(
                _MANGLE_OUT,
                (Match(Field.CONNECTION_MARK, REPLY_MARK),),
                Action.RESTORE_MARK,
                "replies to the proxy, which table 100 keeps in the pod",
            ),
            *_incoming(options),
            *_outgoing(options),
            *(_own_dns() if options.has_dns else ()),
        ),
        addresses={
            (Family.IPV4, Place.LOOPBACK): "127.0.0.1",
            (Family.IPV6, Place.LOOPBACK): "::1",
            (Family.IPV4, Place.PROBE): str(options.probe_v4),
            (Family.IPV6, Place.PROBE): str(options.probe_v6),
        },
    )


def _incoming(options: Options) -> tuple[Rule, ...]:
    guests = tuple(
        Rule(_NAT_IN, (Match(Field.INPUT, name), _TCP), action, f"from a guest behind {name}")
        for name in options.virtual_interfaces
        for action in (Redirect(OUTBOUND), Action.RETURN)
    )
    if options.is_ingress:
        return guests
    not_hbone = Match(Field.PORT, HBONE, is_not=True)
    return (
        *guests,
        Rule(
            _NAT_IN, (Match(Field.SOURCE, Place.PROBE), _TCP), Action.ACCEPT, "probes of the node"
        ),
        Rule(
            _NAT_IN,
            (_ELSEWHERE, _TCP, not_hbone, _NOT_OF_PROXY),
            Redirect(INBOUND),
            "from elsewhere, but for HBONE",
        ),
    )


def _outgoing(options: Options) -> tuple[Rule, ...]:
    not_lo = Match(Field.OUTPUT, "lo", is_not=True)
    dns = (
        Rule(
            _NAT_OUT, (not_lo, _UDP, _NOT_OF_PROXY, _TO_DNS), Redirect(DNS_CAPTURE), "DNS over UDP"
        ),
        Rule(
            _NAT_OUT,
            (_ELSEWHERE, _TCP, _TO_DNS, _NOT_OF_PROXY),
            Redirect(DNS_CAPTURE),
            "DNS over TCP",
        ),
    )
    return (
        Rule(
            _NAT_OUT,
            (Match(Field.DESTINATION, Place.PROBE), _TCP),
            Action.ACCEPT,
            "answers to probes",
        ),
        *(dns if options.has_dns else ()),
        Rule(
            _NAT_OUT, (_TCP, Match(Field.MARK, REPLY_MARK)), Action.ACCEPT, "replies to the proxy"
        ),
        Rule(_NAT_OUT, (_ELSEWHERE, Match(Field.OUTPUT, "lo")), Action.ACCEPT, "the pod to itself"),
        Rule(
            _NAT_OUT,
            (_ELSEWHERE, _TCP, _NOT_OF_PROXY),
            Redirect(OUTBOUND),
            "all else, but for the proxy's own",
        ),
    )


def _own_dns() -> tuple[Rule, ...]:
    """The proxy's queries may have the source port of a captured one without being taken for it."""
    from_dns = Match(Field.SOURCE_PORT, _DNS)
    return (
        Rule(_RAW_OUT, (_UDP, _OF_PROXY, _TO_DNS), Action.OWN_ZONE, "queries of the proxy"),
        Rule(_RAW_IN, (_UDP, _NOT_OF_PROXY, from_dns), Action.OWN_ZONE, "answers to them"),
    )
