# SPDX-License-Identifier: Apache-2.0
"""Starts the proxy: reads the settings, opens the log, checks OpenSSL, runs until the end."""

from __future__ import annotations

import os
import sys

from ztunnel_py.errors import StartError


def start() -> int:
    """Runs the proxy and returns the exit status: 0 in order, 1 could not start."""
    import faulthandler

    from ztunnel_py import config, openssl
    from ztunnel_py.telemetry import log

    _hold_standard_streams()
    faulthandler.enable()  # a crash of the core says where Python was
    try:
        settings = config.load(os.environ)
        config.refuse_unbuilt(settings)
        log.configure(settings.log_filter, is_json=settings.is_log_json)
        log.logger("ztunnel::app").info(f"data plane: {settings.dataplane}")

        openssl.check()
        if settings.compliance_policy == "pqc":
            openssl.exchange_keys_post_quantum()

        import uvloop

        from ztunnel_py import app

        uvloop.run(app.serve(settings))
    except StartError as error:
        log.close()
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.close()
    return 0


def _hold_standard_streams() -> None:
    """Gives no file or socket the number of a standard stream that was closed by who started us.

    What stands in for it cannot be written, so that the log notices.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
