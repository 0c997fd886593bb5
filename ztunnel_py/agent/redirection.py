# SPDX-License-Identifier: Apache-2.0
"""What the agent does to the network of pods: rules in each, and what lets health checks pass.

Everything here blocks, and may be called from any thread.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ztunnel_py.redirection import apply, choice, host
from ztunnel_py.redirection.addresses import addresses_of
from ztunnel_py.redirection.host_iptables import Ipsets
from ztunnel_py.redirection.host_nft import NftSets
from ztunnel_py.redirection.iptables import Iptables
from ztunnel_py.redirection.kubelet import kubelet_uid
from ztunnel_py.redirection.plan import Family, pod_plan
from ztunnel_py.redirection.settings import node_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.plan import Plan


class Rules:
    """Rules of pods, by the programs that `backend` names; see `redirection.choice`."""

    def __init__(self, backend: str, environ: Mapping[str, str]) -> None:
        """Reads what holds for all pods.

        Raises:
            PlanError: the environment says what cannot be.
        """
        self._backend = backend
        self._environ = environ
        self._options = node_options(environ)

    def apply(self, netns: Netns, options: Mapping[str, Any]) -> None:
        """As `agent.Redirection`.

        Raises:
            PlanError: there can be no such rules.
            RedirectionError: they could not be installed.
        """
        plan = self._plan(options)
        backend = choice.choose_for(netns, self._backend, self._environ, plan.families)
        apply.apply(plan, backend, netns)

    def remove(self, netns: Netns) -> None:
        """As `agent.Redirection`.

        Raises:
            RedirectionError: something is left.
        """
        apply.remove(self._plan({}).families, netns)

    def _plan(self, options: Mapping[str, Any]) -> Plan:
        return pod_plan(
            dataclasses.replace(
                self._options,
                has_dns=bool(options.get("dns")),
                is_ingress=bool(options.get("ingress")),
                virtual_interfaces=tuple(map(str, options.get("virtualInterfaces", ()))),
            )
        )


class Probes:
    """Lets what this machine itself sends to its pods pass by the proxy, as health checks must."""

    def __init__(self, backend: str, environ: Mapping[str, str]) -> None:
        """Chooses programs.

        Raises:
            PlanError: the environment says what cannot be.
            RedirectionError: the programs are missing; with nft: no kubelet runs here.
        """
        options = node_options(environ)
        families = tuple(Family) if options.has_ipv6 else (Family.IPV4,)
        node = host.Node(families, options.probe_v4, options.probe_v6)
        programs = choice.choose_for(None, backend, environ, families)
        self._sets: Ipsets | NftSets = (
            Ipsets(node, programs)
            if isinstance(programs, Iptables)
            else NftSets(node, kubelet_uid())
        )

    def open(self, pods: Mapping[str, Netns]) -> None:
        """Makes the sets those of these pods, by UID.

        Raises:
            RedirectionError: something failed.
        """
        self._sets.create()
        host.fill(self._sets, {uid: addresses_of(netns) for uid, netns in pods.items()})

    def add(self, uid: str, netns: Netns) -> None:
        """Lets checks of a pod pass.

        Raises:
            RedirectionError: something failed.
        """
        for address in addresses_of(netns):
            self._sets.add(uid, address)

    def remove(self, uid: str) -> None:
        """Lets them pass no more.

        Raises:
            RedirectionError: something is left.
        """
        for address, owner in self._sets.entries().items():
            if owner == uid:
                self._sets.remove(uid, address)

    def close(self) -> None:
        """Takes everything away.

        Raises:
            RedirectionError: something is left.
        """
        self._sets.delete()
