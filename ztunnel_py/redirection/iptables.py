# SPDX-License-Identifier: Apache-2.0
"""Rules by the programs `iptables-nft`, `iptables-legacy` or plain `iptables`.

All functions work in the namespace of the calling thread. Source: spec redirection, section 2.8.
Rules name neither hosts nor services, so no program looks up anything in the half-built network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztunnel_py.redirection import iptables_text
from ztunnel_py.redirection.occupied import has_legacy_tables, has_nft_tables
from ztunnel_py.redirection.plan import Family
from ztunnel_py.redirection.programs import RedirectionError, find, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ztunnel_py.redirection.difference import Difference
    from ztunnel_py.redirection.iptables_text import Tables
    from ztunnel_py.redirection.plan import Plan

_PROGRAM = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Iptables:
    """One variant: `nft`, `legacy`, or empty for the programs without a suffix."""

    variant: str

    def __str__(self) -> str:
        """The name of its program."""
        return self.program(Family.IPV4)

    def program(self, family: Family) -> str:
        """The name of its program for a family."""
        return "-".join(filter(None, (_PROGRAM[family], self.variant)))

    def exists(self) -> bool:
        """Its programs are installed."""
        return find(f"{self}-save") is not None

    def differences(self, plan: Plan) -> Iterator[Difference]:
        """How what is there differs from the plan; see `iptables_text.differences`.

        Raises:
            RedirectionError: a program failed.
        """
        for family in plan.families:
            wanted = iptables_text.contents(plan, family)
            yield from iptables_text.differences(family, self.read(family), wanted)

    def holds(self, families: Iterable[Family]) -> bool:
        """Something of ours is there.

        Raises:
            RedirectionError: a program failed.
        """
        return any(self.read(family) for family in families)

    def fill(self, plan: Plan) -> None:
        """Makes what is there equal to the plan, a table at a time.

        Raises:
            RedirectionError: a program failed; all is as it was, or the text says what is not.
        """
        self.change({family: iptables_text.contents(plan, family) for family in plan.families})

    def clear(self, families: Iterable[Family]) -> None:
        """Takes away all that is ours.

        Raises:
            RedirectionError: as `fill`.
        """
        self.change({family: {} for family in families})

    def read(self, family: Family, prefix: str = iptables_text.PREFIX) -> Tables:
        """What is ours: chains whose names begin with `prefix`.

        Raises:
            RedirectionError: the program failed.
        """
        match self.variant:
            case "legacy" if not has_legacy_tables(family):
                return {}  # asking would create the tables, and lead to another answer next time
            case "nft" if not has_nft_tables(family):
                return {}  # asking would take longer
        return iptables_text.parse(run([f"{self.program(family)}-save"]), prefix)

    def change(self, wanted: Mapping[Family, Tables], prefix: str = iptables_text.PREFIX) -> None:
        """Leads from what is there to what is wanted; a failure leads back.

        Raises:
            RedirectionError: as `fill`.
        """
        found: dict[Family, Tables] = {}
        try:
            for family, tables in wanted.items():
                found[family] = self.read(family, prefix)
                self._restore(family, iptables_text.transition(found[family], tables))
        except RedirectionError:
            for family, tables in found.items():
                self._lead_back(family, tables, prefix)
            raise

    def _lead_back(self, family: Family, tables: Tables, prefix: str) -> None:
        try:
            now = self.read(family, prefix)
            self._restore(family, iptables_text.transition(now, tables))
        except RedirectionError as error:
            raise RedirectionError(
                f"{error}; the rules of {family.value} are neither the old nor the new ones: "
                "remove them and apply them again"
            ) from error

    def _restore(self, family: Family, text: str) -> None:
        if text:
            wait = [f"--wait={_WAIT_S}"] if self.variant == "legacy" else []
            run([f"{self.program(family)}-restore", "--noflush", *wait], text)


def has_legacy_rules() -> bool:
    """Somebody's rules are there in the legacy kind, which is then the one to use.

    Raises:
        RedirectionError: the program failed.
    """
    if not has_legacy_tables(Family.IPV4) or find("iptables-legacy-save") is None:
        return False
    return any(line.startswith("-A") for line in run(["iptables-legacy-save"]).splitlines())
