# SPDX-License-Identifier: Apache-2.0
"""The native engine serves without a line of the reference."""

from __future__ import annotations

import subprocess
import sys

from tests.support.wait import DEADLINE_S

PROGRAM = """
import asyncio, sys
from tests.support.clock import FakeClock
from tests.support.engines import make_engine
from tests.support.apps import App, Tcp, echo
from tests.support.plane import WORKLOAD, forward
from ztunnel_py.dataplane.abc import EngineSettings, ListenAddress, QuestionKind, Role, WorkloadSpec

async def main():
    engine = make_engine("native", FakeClock())
    engine.start(EngineSettings())
    where = (ListenAddress(Role.OUTBOUND, "127.0.0.1", 0),)
    ports = engine.workload_add(WorkloadSpec(WORKLOAD, where))
    engine.workload_serve(WORKLOAD)
    app = await App(echo).start()
    def answer():
        for question in engine.recv_questions(10):
            engine.reply(question.id, forward(app.address))
    asyncio.get_running_loop().add_reader(engine.question_fd, answer)
    user = await Tcp.dial(ports[Role.OUTBOUND])
    user.send(b"served")
    user.end()
    assert await user.read_all() == b"served"
    user.close()
    app.close()
    asyncio.get_running_loop().remove_reader(engine.question_fd)
    await engine.stop()
    print(engine.__impl__, [name for name in sys.modules if name == "h2" or "reference" in name])

asyncio.run(main())
"""


def test_serving_loads_nothing_of_the_reference_engine() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=DEADLINE_S
    )

    assert run.stdout == "native []\n", run.stderr
