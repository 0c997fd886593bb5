# SPDX-License-Identifier: Apache-2.0
"""What is written in C and in Python is the same: reasons, counters, enums, settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests.architecture import c_source
from ztunnel_py.core import _core
from ztunnel_py.core.reasons import table
from ztunnel_py.dataplane import labels, native, packing
from ztunnel_py.dataplane.abc import EngineSettings, RecordKind, Role, Steps
from ztunnel_py.decide.verdict import Action
from ztunnel_py.errors import Flag, Reason

ROOT = Path(__file__).parents[2]
HEADERS = {path.name: path.read_text() for path in c_source.files(".h")}


def test_the_built_table_of_reasons_is_that_of_today() -> None:
    assert (ROOT / "build" / "core" / "reason.def").read_text() == table()


def test_reasons_cross_with_number_status_flag_and_earliness() -> None:
    rows = re.findall(r"^REASON\((\w+), (\d+), (\d+), (\d+), ([01])\)$", table(), re.M)

    assert [
        (name, int(number), int(status), packing.FLAGS[int(flag)], early == "1")
        for name, number, status, flag, early in rows
    ] == [(one.name, one.number, one.status, one.flag, one.is_early) for one in Reason]


def test_reasons_have_numbers_that_fit_and_no_two_the_same() -> None:
    numbers = [reason.number for reason in Reason]

    assert len(set(numbers)) == len(numbers)
    assert max(numbers) <= 255


def test_flags_have_a_column_each() -> None:
    assert f"#define REASON_FLAGS {len(Flag)} " in HEADERS["reason.h"]
    assert labels.COLUMNS == _core.COLUMNS


def test_events_are_those_of_the_table_and_documented() -> None:
    names = re.findall(r"^EVENT\((\w+)\)$", (c_source.CORE / "stats.def").read_text(), re.M)
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "boundary.md").read_text()))

    assert tuple(names) == _core.EVENTS
    assert {name for name in names if name.startswith("sockets_opened_s")} <= documented


def test_kinds_of_live_objects_have_a_name_each() -> None:
    kinds = c_source.enumerators("mem.h", "mem_kind")

    assert len(_core.KINDS) == len(kinds) - 1 == len(set(_core.KINDS))


@pytest.mark.parametrize(
    ("header", "enum", "prefix", "names"),
    [
        ("record.h", "record_kind", "RECORD_", [kind.name for kind in RecordKind]),
        ("record.h", "record_step", "STEP_", [f.name for f in dataclasses.fields(Steps)]),
        ("key.h", "key_kind", "KEY_", [kind.name for kind in packing.QUESTION_KINDS]),
        ("verdict.h", "hop_protocol", "HOP_", [one.name for one in packing.PROTOCOLS]),
        ("verdict.h", "verdict_action", "VERDICT_", [action.name for action in Action]),
        ("core.h", "core_role", "CORE_", [role.name for role in Role if role is not Role.SOCKS5]),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value and value.islower() else "",
)
def test_enums_count_the_same_things(header: str, enum: str, prefix: str, names: list[str]) -> None:
    found = [name for name in c_source.enumerators(header, enum) if name.startswith(prefix)]

    counted = [name.removeprefix(prefix) for name in found if not name.endswith("S")]
    assert counted[: len(names)] == [name.removesuffix("_ns").upper() for name in names]


def test_every_field_of_the_cores_configuration_is_set() -> None:
    given = set(native.core_config(EngineSettings()))

    fields = set(c_source.members("core.h", "core_config"))

    assert fields == given | {"report_opened", "has_manual_time"}


def test_one_copy_of_libssl_is_loaded_by_the_core() -> None:
    maps = Path("/proc/self/maps").read_text()
    copies = set(re.findall(r"\S*/libssl\.so\S*", maps))

    assert len(copies) == 1
    assert _core.OPENSSL.startswith("OpenSSL 3")
