# SPDX-License-Identifier: Apache-2.0
"""Random scripts, played on both engines: what is seen from outside is the same.

The same scripts each time, so that what is found is not found in somebody else's change; new ones
with `DIFFERENTIAL_SEARCH=1`.
"""

from __future__ import annotations

import asyncio
import os
from itertools import zip_longest
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.differential.scenario import (
    Answer,
    End,
    Outcome,
    Reset,
    Respond,
    Scenario,
    Send,
    Way,
    scenarios,
)
from tests.differential.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.differential.trace import Trace
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

    Certify = Callable[[Identity], WorkloadCertificate]

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "150"))
"""Per way; some 80 ms each."""
SEARCH = "DIFFERENTIAL_SEARCH" in os.environ
PATIENT = 5


async def play(scenario: Scenario, certify: Certify, patience: int = 1) -> tuple[Trace, Trace]:
    """What is seen on the native engine and on the reference."""
    native = Stage(scenario, "native", certify, patience)
    reference = Stage(scenario, "reference", certify, patience)
    return await asyncio.gather(native.play(), reference.play())


def difference(native: Trace, reference: Trace) -> str:
    """Both, line by line, lines that differ marked; empty if none does."""
    if native.lines == reference.lines:
        return ""
    shown = []
    for ours, theirs in zip_longest(native.lines, reference.lines, fillvalue="-"):
        if ours == theirs:
            shown.append(f"  both       {ours}")
        else:
            shown += [f"> native     {ours}", f"> reference  {theirs}"]
    return "\n".join(["", *shown])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", Way)
@settings(max_examples=EXAMPLES, derandomize=not SEARCH, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_engines_agree(way: Way, data: st.DataObject, certify: Certify) -> None:
    scenario = data.draw(scenarios(way))

    found = difference(*await play(scenario, certify))
    if found:  # once more, in case the machine was slow
        found = difference(*await play(scenario, certify, PATIENT))

    assert not found, found


async def test_what_a_client_has_sent_outlives_its_reset(certify: Certify) -> None:
    steps = (Answer(), Respond(200), End("near", 5), Reset("near", 0), Send("far", 1))
    scenario = Scenario(Way.OUTBOUND_HBONE, Outcome.SERVED, 0, 65_535, steps)

    assert not difference(*await play(scenario, certify, PATIENT))
