# SPDX-License-Identifier: Apache-2.0
"""Rules by the program `nft`, in tables of our own.

All functions work in the namespace of the calling thread. Source: spec redirection, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztunnel_py.redirection import nft_text
from ztunnel_py.redirection.occupied import has_nft_tables
from ztunnel_py.redirection.programs import find, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ztunnel_py.redirection.difference import Difference
    from ztunnel_py.redirection.nft_text import Tables
    from ztunnel_py.redirection.plan import Family, Plan

LIST = ("nft", "--stateless", "--numeric-priority", "list", "ruleset", "inet")


@dataclass(frozen=True, slots=True)
class Nftables:
    """The rules of nft itself."""

    def __str__(self) -> str:
        """The name of its program."""
        return "nft"

    def exists(self) -> bool:
        """The program is installed."""
        return find("nft") is not None

    def differences(self, plan: Plan) -> Iterator[Difference]:
        """How what is there differs from the plan; see `nft_text.differences`.

        Raises:
            RedirectionError: the program failed.
        """
        return nft_text.differences(self._read(), nft_text.contents(plan))

    def holds(self, families: Iterable[Family]) -> bool:
        """Something of ours is there, for whatever family.

        Raises:
            RedirectionError: the program failed.
        """
        return bool(self._read())

    def fill(self, plan: Plan) -> None:
        """Makes what is there equal to the plan, at once or not at all.

        Raises:
            RedirectionError: the program failed; all is as it was.
        """
        run(["nft", "-f", "-"], nft_text.transaction(nft_text.contents(plan)))

    def clear(self, families: Iterable[Family]) -> None:
        """Takes away all that is ours, of all families.

        Raises:
            RedirectionError: the program failed; all is as it was.
        """
        run(["nft", "-f", "-"], nft_text.transaction({}))

    def _read(self) -> Tables:
        return nft_text.parse(run(LIST)) if has_nft_tables(None) else {}
