# SPDX-License-Identifier: Apache-2.0
"""The plan as shell scripts, for people: `ztunnel-py redirect print`, and the files in `iptables/`.

They are repeatable, and do what `apply.py` does but for its checks. A jump is made only where it is
missing, after the chain that it leads to is filled. `python -m ztunnel_py.redirection.scripts`
writes the files anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.redirection import iptables_text, nft_text, routes
from ztunnel_py.redirection.iptables import Iptables
from ztunnel_py.redirection.nftables import Nftables
from ztunnel_py.redirection.plan import Family, Options, pod_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.redirection.plan import Plan
    from ztunnel_py.redirection.routes import Piece

FOLDER = Path(__file__).parents[2] / "iptables"
_IP = {Family.IPV4: "ip -4", Family.IPV6: "ip -6"}
_HEAD = """\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# {purpose}
# Written by ztunnel-py; run it as root in the pod's network namespace.
set -eu
"""


def apply_script(plan: Plan, backend: Iptables | Nftables) -> str:
    """The script that applies a plan."""
    lines = [*map(_added, routes.pieces(plan.families))]
    if isinstance(backend, Nftables):
        lines += ["", "nft -f - <<'RULES'", nft_text.transaction(nft_text.contents(plan)) + "RULES"]
    else:
        for family in plan.families:
            lines += ["", *_iptables(plan, backend, family)]
    return _script("Sends the traffic of a pod through the proxy that listens in it.", lines)


def remove_script(plan: Plan, backend: Iptables | Nftables) -> str:
    """The script that takes away what `apply_script` adds."""
    lines: list[str] = []
    if isinstance(backend, Nftables):
        lines += ["nft -f - <<'RULES'", nft_text.transaction({}) + "RULES", ""]
    else:
        for family in plan.families:
            lines += [*_iptables_removed(plan, backend, family), ""]
    lines += map(_removed, routes.pieces(plan.families))
    return _script("Takes away the rules that send the traffic of a pod through the proxy.", lines)


def files() -> dict[str, str]:
    """The scripts of the usual plan, with DNS and both families, by the name of their file."""
    plan = pod_plan(Options(has_dns=True))
    kinds: dict[str, Iptables | Nftables] = {"iptables": Iptables(""), "nft": Nftables()}
    return {
        f"{verb}-{kind}.sh": script(plan, backend)
        for kind, backend in kinds.items()
        for verb, script in (("apply", apply_script), ("remove", remove_script))
    }


def _script(purpose: str, lines: list[str]) -> str:
    return _HEAD.format(purpose=purpose) + "\n" + "\n".join(lines).strip() + "\n"


# --- routes


def _added(piece: Piece) -> str:
    ip = _IP[piece.family]
    if piece.is_rule:
        return f'[ -n "$({ip} rule show {_selected(piece)})" ] || {ip} rule add {piece.words}'
    return f"{ip} route replace {piece.words}"


def _removed(piece: Piece) -> str:
    ip = _IP[piece.family]
    kind = "rule" if piece.is_rule else "route"
    shown = f"{ip} {kind} show {_selected(piece)} 2>/dev/null"
    return f'[ -z "$({shown})" ] || {ip} {kind} del {piece.words}'


def _selected(piece: Piece) -> str:
    return f"pref {routes.PRIORITY}" if piece.is_rule else f"table {routes.TABLE}"


# --- iptables


def _iptables(plan: Plan, backend: Iptables, family: Family) -> Iterator[str]:
    """One table after the other; with the reason of each rule."""
    tables = iptables_text.contents(plan, family)
    yield f"{backend.program(family)}-restore --noflush <<'RULES'"
    for table, of_table in tables.items():
        yield f"*{table}"
        yield from (f":{chain} - [0:0]" for chain in of_table.chains)
        for chain in plan.jumps:
            if chain.table.value == table:
                lines = of_table.chains[iptables_text.NAMES[chain.hook]]
                for reason, line in zip(plan.of(chain), lines, strict=True):
                    yield f"# {reason.why}"
                    yield line
        yield "COMMIT"
    yield "RULES"
    for table, of_table in tables.items():
        for jump in of_table.jumps:
            told = f"{backend.program(family)} -t {table}"
            rule = jump.removeprefix("-A ")
            yield f"{told} -C {rule} 2>/dev/null || {told} -A {rule}"


def _iptables_removed(plan: Plan, backend: Iptables, family: Family) -> Iterator[str]:
    for table, of_table in iptables_text.contents(plan, family).items():
        told = f"{backend.program(family)} -t {table}"
        for jump in of_table.jumps:
            yield f"while {told} -D {jump.removeprefix('-A ')} 2>/dev/null; do :; done"
        for chain in of_table.chains:
            yield f"{told} -F {chain} 2>/dev/null && {told} -X {chain}"


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
        (FOLDER / name).chmod(0o755)
