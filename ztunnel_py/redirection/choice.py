# SPDX-License-Identifier: Apache-2.0
"""Which programs change the rules: those that are asked for, or that are in use already.

    auto       what already holds rules of ours; else as `iptables`; else nft, if only that is there
    iptables   FORCE_IPTABLES_BINARY (`legacy`, `nft`) if it is set; else iptables-legacy if it has
               rules; else iptables-nft; else iptables
    legacy     iptables-legacy
    nft        nftables, unless the node is used to the iptables way

All functions but `choose_for` work in the namespace of the calling thread. Nothing is tried out: a
trial rule makes the legacy kind look used, and the next choice another one. Source: spec
redirection, sections 2.8 and 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.redirection.host_iptables import has_address_set
from ztunnel_py.redirection.iptables import Iptables, has_legacy_rules
from ztunnel_py.redirection.nftables import Nftables
from ztunnel_py.redirection.programs import RedirectionError, call_inside, package
from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.plan import Family

FORCE = "FORCE_IPTABLES_BINARY"
_VARIANTS = ("legacy", "nft")
_log = logger("ztunnel::redirection")


Backend = Iptables | Nftables


def backends() -> list[Backend]:
    """Those that are installed; plain `iptables` only if it is the only kind of iptables."""
    variants = [one for one in map(Iptables, _VARIANTS) if one.exists()]
    everything: tuple[Backend, ...] = (*(variants or [Iptables("")]), Nftables())
    return [one for one in everything if one.exists()]


def choose(
    name: str,
    environ: Mapping[str, str],
    families: Iterable[Family],
    *,
    has_probe_set: bool = False,
) -> Backend:
    """The programs for a name of `settings.BACKENDS`.

    `has_probe_set`: the node has the ipset of section 4.

    Raises:
        RedirectionError: what is asked for is not installed, or `FORCE_IPTABLES_BINARY` is neither
            `legacy` nor `nft`.
    """
    if name == "nft" and has_probe_set:
        _log.warn("this node has rules of iptables for probes: nftables is used after a reboot")
        name = "iptables"
    forced = environ.get(FORCE, "")
    if forced not in ("", *_VARIANTS):
        raise RedirectionError(f"{FORCE} is {forced!r}; expected legacy or nft")
    if name == "nft":
        return _installed(Nftables())
    if variant := "legacy" if name == "legacy" else forced:
        return _installed(Iptables(variant))
    found = backends()
    if name == "auto":
        in_use = next((one for one in found if one.holds(families)), None)
        if in_use is not None:
            return in_use
    if has_legacy_rules():
        return Iptables("legacy")
    kinds = [Iptables(variant) for variant in ("nft", "", "legacy")]
    usual = [*kinds, Nftables()] if name == "auto" else kinds
    return next((one for one in usual if one in found), None) or _installed(Iptables(""))


def choose_for(
    where: Netns | None, name: str, environ: Mapping[str, str], families: Iterable[Family]
) -> Backend:
    """The programs for the pod `where`, called in the node's namespace, which has the ipset.

    Raises:
        RedirectionError: as `choose`, or the namespace cannot be entered.
    """
    has_set = name == "nft" and has_address_set()
    return call_inside(where, lambda: choose(name, environ, families, has_probe_set=has_set))


def _installed(backend: Backend) -> Backend:
    if not backend.exists():
        raise RedirectionError(
            f"the program '{backend}' is missing; install the package {package(str(backend))}"
        )
    return backend
