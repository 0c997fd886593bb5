# SPDX-License-Identifier: Apache-2.0
"""Starts the proxy: reads the settings, opens the log, checks OpenSSL, runs until the end."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from ztunnel_py.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType


def start() -> int:
    """Runs the proxy and returns the exit status: 0 in order, 1 could not start."""
    _end_at_signals()
    import faulthandler

    from ztunnel_py import config, openssl
    from ztunnel_py.telemetry import log

    _hold_standard_streams()
    faulthandler.enable(file=2)  # a crash of the core says where Python was
    try:
        settings = config.load(os.environ)
        config.refuse_unbuilt(settings)
        log.configure(settings.log_filter, is_json=settings.is_log_json)
        log.logger("ztunnel::app").info(f"data plane: {settings.dataplane}")

        openssl.check()
        if settings.compliance_policy == "pqc":
            openssl.exchange_keys_post_quantum()
    except StartError as error:
        return _failed(error)

    import uvloop

    from ztunnel_py import app

    return uvloop.run(_to_the_end(app.serve(settings)))


async def _to_the_end(serving: Coroutine[None, None, None]) -> NoReturn:
    """Ends the process as soon as it has served.

    Who would close the loop first waits for its threads: for one that asks a name server that does
    not answer, as long as resolv.conf says.
    """
    from ztunnel_py.telemetry import log

    try:
        await serving
    except StartError as error:
        os._exit(_failed(error))
    log.close()
    os._exit(0)


def _failed(error: StartError) -> int:
    from ztunnel_py.telemetry import log

    log.close()
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 1


def _end_at_signals() -> None:
    """Lets SIGTERM and SIGINT end the start at once, until `lifecycle.Shutdown` handles them.

    That is what they do by default, but not to the first process of a container: the kernel drops
    what it does not handle, and who deletes the pod would wait for its whole grace period. Nor does
    Python leave SIGINT alone. Source: spec identity-ops, section D.6.
    """
    is_first = os.getpid() == 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit if is_first else signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    """Ends with the status that shells and container runtimes give to a death of the signal."""
    os._exit(128 + number)


def _hold_standard_streams() -> None:
    """Gives no file or socket the number of a standard stream that was closed by who started us.

    What stands in for it cannot be written, so that the log notices.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
