# SPDX-License-Identifier: Apache-2.0
"""Log lines: forms, filters, and what happens before and after."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.errors import ConfigError
from ztunnel_py.telemetry import log
from ztunnel_py.telemetry.filter import Level
from ztunnel_py.telemetry.log import Display, Group, logger

if TYPE_CHECKING:
    from tests.telemetry.conftest import LogFile

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


@pytest.mark.spec("ops-111")
def test_plain_line_has_tab_separated_columns_with_utc_time_and_lower_case_level(
    log_file: LogFile,
) -> None:
    log_file.start()

    logger("ztunnel::admin").warn(
        "listener established",
        {"address": Display("127.0.0.1:15000"), "component": "admin", "n": 3, "ok": True},
    )

    (line,) = log_file.lines()
    time, level, target, message, fields = line.split("\t")
    assert re.fullmatch(_TIME, time)
    assert (level, target, message) == ("warn", "admin", "listener established")
    assert fields == 'address=127.0.0.1:15000 component="admin" n=3 ok=true'


def test_plain_line_without_fields_ends_in_a_tab(log_file: LogFile) -> None:
    log_file.start()

    logger("access").info("hello")

    (line,) = log_file.lines()
    assert line.endswith("\tinfo\taccess\thello\t")


def test_text_is_escaped_and_none_is_left_out(log_file: LogFile) -> None:
    log_file.start()

    logger("a").info("m", {"text": 'say "no"\\\n\x1b', "nothing": None, "shown": Display("x\ny")})

    (line,) = log_file.lines()
    assert line.endswith('text="say \\"no\\"\\\\\\n\\u{1b}" shown=x\\ny')


def test_message_cannot_begin_a_second_line(log_file: LogFile) -> None:
    log_file.start()

    logger("a").info("one\n2026-01-01T00:00:00.000000Z\tinfo\taccess\tforged")

    assert len(log_file.lines()) == 1


@pytest.mark.spec("ops-110")
def test_json_line_is_an_object_that_begins_with_level_time_scope(log_file: LogFile) -> None:
    log_file.start(is_json=True)

    logger("ztunnel::proxy").info("m", {"a": "x", "n": 1, "ok": True, "at": Display("1.2.3.4:5")})

    (line,) = log_file.lines()
    event = json.loads(line)
    assert list(event) == ["level", "time", "scope", "message", "a", "n", "ok", "at"]
    assert re.fullmatch(_TIME, event.pop("time"))
    assert event == {
        "level": "info",
        "scope": "ztunnel::proxy",
        "message": "m",
        "a": "x",
        "n": 1,
        "ok": True,
        "at": "1.2.3.4:5",
    }


@pytest.mark.parametrize("is_json", [False, True])
def test_grouped_fields_read_like_single_ones(log_file: LogFile, *, is_json: bool) -> None:
    log_file.start(is_json=is_json)

    logger("a").info("m", {"x": 1, "group": Group({"b": "y", "c": None}), "z": 2})
    logger("a").info("m", {"x": 1, "b": "y", "z": 2})

    grouped, single = log_file.lines()
    assert re.sub(_TIME, "", grouped) == re.sub(_TIME, "", single)


@pytest.mark.spec("ops-112")
def test_target_filter_lets_debug_of_one_module_through(log_file: LogFile) -> None:
    log_file.start("error,ztunnel::xds=debug")

    logger("ztunnel::xds::client").debug("shown")
    logger("ztunnel::state").info("hidden")
    logger("ztunnel::state").error("shown too")

    assert [line.split("\t")[3] for line in log_file.lines()] == ["shown", "shown too"]


def test_field_filter_sees_grouped_fields(log_file: LogFile) -> None:
    log_file.start("off,access[{src.workload}]=debug")
    access = logger("access")

    access.debug("hidden", {"a": 1})
    access.debug("shown", {"a": 1, "src": Group({"src.workload": "w"})})

    assert [line.split("\t")[3] for line in log_file.lines()] == ["shown"]


def test_enabled_without_fields_asks_whether_any_event_could_be_written(log_file: LogFile) -> None:
    log_file.start("info,access[{error}]=debug")
    access = logger("access")

    assert access.enabled(Level.DEBUG)
    assert access.enabled(Level.DEBUG, {"error"})
    assert not access.enabled(Level.DEBUG, {"direction"})


def test_bad_filter_is_refused_and_leaves_the_log_as_it_was(log_file: LogFile) -> None:
    log_file.start()

    with pytest.raises(ConfigError, match="RUST_LOG"):
        log.configure("a=b=c")
    logger("a").info("still here")

    assert len(log_file.lines()) == 1


def test_before_configure_lines_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    logger("ztunnel::app").error("cannot start")

    assert capfd.readouterr().err.endswith("\terror\tapp\tcannot start\t\n")


def test_exit_writes_what_is_queued() -> None:
    program = (
        "from ztunnel_py.telemetry import log\n"
        "log.configure()\n"
        "for n in range(1000): log.logger('a').info('m', {'n': n})\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )

    assert result.stdout.count("\n") == 1000


def test_exit_survives_a_closed_reader() -> None:
    program = (
        "import os\n"
        "from ztunnel_py.telemetry import log\n"
        "log.configure()\n"
        "r, w = os.pipe()\n"
        "os.dup2(w, 1)\n"
        "os.close(w)\n"
        "os.close(r)\n"
        "for n in range(100): log.logger('a').info('m')\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )

    said = "error: cannot write the log: Broken pipe; lines are lost until that is over\n"
    assert (result.returncode, result.stderr) == (0, said)
