# SPDX-License-Identifier: Apache-2.0
"""`/logging`: shows the log filter, adds to it, or goes back to that of the start.

    POST /logging                          shows it
    POST /logging?level=debug              a level for every target
    POST /logging?level=access=off,info    levels for targets, and one for the others
    POST /logging?reset                    that of the start; `level` may come on top

Source: spec identity-ops, sections D.4 and E.5; ztunnel src/admin.rs and src/telemetry.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.admin.http import Answer
from ztunnel_py.errors import ConfigError
from ztunnel_py.telemetry import log
from ztunnel_py.telemetry.filter import Level, clauses

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.admin.http import Request

_LEVELS = frozenset(level.name.lower() for level in Level)
_USAGE = """
usage: POST /logging                                  show the levels
usage: POST /logging?level=LEVEL                      change the level of everything else
usage: POST /logging?level=TARGET=LEVEL,TARGET=LEVEL  change those of some; &reset drops the others

hint: LEVEL is one of error, warn, info, debug, trace, off
hint: TARGET is the beginning of a target's name, such as access or ztunnel::proxy
"""


def logging(request: Request, changed: Callable[[], object]) -> Answer:
    """Answers `/logging`; `changed` is called after each change."""
    if request.method != "POST":
        return Answer(405, f"Invalid HTTP method\n{_USAGE}")
    level, is_reset = request.query.get("level", ""), "reset" in request.query
    if level or is_reset:
        try:
            _check(level)
            log.change_filter(level, is_reset=is_reset)
        except ConfigError:
            return Answer(400, f"Invalid level provided: {level}\n{_USAGE}")
        changed()
    return Answer(200, f"current log level is {log.filter_text()}\n")


def _check(level: str) -> None:
    """Refuses a bare target, which `RUST_LOG` takes for trace: here it is a slip of the pen."""
    for clause in clauses(level) if level else ():
        if clause not in _LEVELS and "=" not in clause:
            raise ConfigError(f"{clause!r} is no level")
