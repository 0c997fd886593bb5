# SPDX-License-Identifier: Apache-2.0
"""Asks for addresses when they are needed, and waits for the answers.

An answer is whatever the control plane has to say of a name, also that there is nothing. Waiting
for it is bounded, but what is not answered is not known: whoever comes later waits as well.
Source: spec state, section 1.10; ztunnel src/xds/client.rs, which waits without a bound.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ztunnel_py.clock import within

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ztunnel_py.clock import Clock
    from ztunnel_py.xds.session import Outcome

WAIT_S = 5.0
OPEN_MAX = 1000
"""Names that may be without an answer at a time."""


class OnDemand:
    """Questions to the control plane.

    Args:
        ask: sends a question; false if the name is subscribed to already, so that what is known
            of it is all there is.
    """

    def __init__(self, ask: Callable[[str], bool], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._open: dict[str, asyncio.Future[None]] = {}

    async def fetch(self, names: Collection[str]) -> None:
        """Returns when what the control plane says of all `names` is in the store.

        Raises:
            TimeoutError: there was no answer in time, or too many others are waited for; the text
                begins with how long that was.
        """
        try:
            answers = [asyncio.shield(self._answer(name)) for name in names]
            await within(self._clock, WAIT_S, asyncio.gather(*answers))
        except TimeoutError:
            asked = ", ".join(sorted(names))
            raise TimeoutError(
                f"{WAIT_S:g} s: the control plane has not said what {asked} is"
            ) from None

    def answered(self, outcome: Outcome) -> None:
        """A response is in the store."""
        for name in [name for name in self._open if outcome.names(name)]:
            self._open.pop(name).set_result(None)

    def _answer(self, name: str) -> asyncio.Future[None]:
        """Done when there is an answer; one for all who wait for it."""
        if name in self._open:
            return self._open[name]
        if len(self._open) >= OPEN_MAX:
            raise TimeoutError
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._ask(name):
            self._open[name] = answer
        else:
            answer.set_result(None)
        return answer
