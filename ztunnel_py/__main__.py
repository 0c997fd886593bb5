# SPDX-License-Identifier: Apache-2.0
"""The command: `ztunnel-py proxy` and what goes with it; see `help`."""

from __future__ import annotations

import os
import sys

from ztunnel_py.errors import StartError

_USAGE = """\
ztunnel-py {version}: node proxy of an Istio ambient mesh

  ztunnel-py proxy [ztunnel]   run the proxy; settings come from the environment
  ztunnel-py connections       show what is open in a running proxy
  ztunnel-py tunnels           show its HBONE connections
  ztunnel-py certs             show its certificates; --expiring 6h: only those
  ztunnel-py why SRC DST       explain what happens to a connection; --state FILE needs no proxy
  ztunnel-py agent             tell a proxy in shared mode of the pods of this machine
  ztunnel-py enroll NAME       redirect a pod's traffic to it; unenroll ends that, enrolled lists
  ztunnel-py redirect VERB     lead a pod's traffic to the proxy: apply, verify, remove, print
  ztunnel-py demo [--stay]     build a two-node mesh in namespaces and show a connection
  ztunnel-py version           print the build
  ztunnel-py help              print this
"""


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 in order, 1 could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "proxy"
    match command:
        case "proxy":
            return _proxy()
        case "demo":
            from ztunnel_py.cli import demo

            return demo.main(arguments[1:])
        case "connections" | "tunnels":
            from ztunnel_py.cli import live

            return live.main(command, arguments[1:])
        case "agent" | "enroll" | "unenroll" | "enrolled":
            from ztunnel_py.cli import agent

            return agent.main(command, arguments[1:])
        case "certs":
            from ztunnel_py.cli import certs

            return certs.main(arguments[1:])
        case "why":
            from ztunnel_py.cli import why

            return why.main(arguments[1:])
        case "redirect":
            from ztunnel_py.cli import redirect

            return redirect.main(arguments[1:])
        case "version":
            from ztunnel_py.version import BuildInfo

            istio_version = os.environ.get("ISTIO_META_ISTIO_VERSION", "unknown")
            print(BuildInfo.running(istio_version))
            return 0
        case "help":
            print(_usage(), end="")
            return 0
        case _:
            print(f"unknown command: {command}", file=sys.stderr)
            print(_usage(), end="")
            return 1


def _usage() -> str:
    from ztunnel_py import __version__

    return _USAGE.format(version=__version__)


def _proxy() -> int:
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


if __name__ == "__main__":
    sys.exit(run())
