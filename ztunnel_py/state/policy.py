# SPDX-License-Identifier: Apache-2.0
"""An authorization policy: who may connect to whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ztunnel_py.state.address import Cidr


class PolicyScope(enum.Enum):
    """Which workloads a policy applies to."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class PolicyAction(enum.Enum):
    """What a matching policy means."""

    ALLOW = "Allow"
    DENY = "Deny"


class StringMatchKind(enum.Enum):
    """How a string is compared."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


class StringMatch(NamedTuple):
    """A test of one string."""

    kind: StringMatchKind
    value: str = ""
    """Empty for PRESENCE."""


class ServiceAccountMatch(NamedTuple):
    """A service account, in any trust domain."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Match:
    """One test of a connection: all kinds must hold; a match without any field never fires."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    source_ips: tuple[Cidr, ...] = ()
    not_source_ips: tuple[Cidr, ...] = ()
    destination_ips: tuple[Cidr, ...] = ()
    not_destination_ips: tuple[Cidr, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


Clause = tuple[Match, ...]
"""One of its matches must fire; an empty clause holds."""

Rule = tuple[Clause, ...]
"""All of its clauses must hold; an empty rule holds."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy; it matches if one of its rules holds, so never if it has none."""

    name: str
    namespace: str
    scope: PolicyScope
    action: PolicyAction
    rules: tuple[Rule, ...] = ()
    is_dry_run: bool = False

    @property
    def key(self) -> str:
        """Its name in logs and, unless the control plane says otherwise, in workloads."""
        return f"{self.namespace}/{self.name}"
