# SPDX-License-Identifier: Apache-2.0
"""What bad clients say, and what a failed build says."""

from __future__ import annotations

import itertools

import hpack
import pytest

from bench import attack, faults, sources
from tests.support.frames import PREFACE, FrameReader

BLOCK = attack.connect_block("10.0.0.9:80")


def test_header_block_is_whole_and_changes_no_state() -> None:
    decoder = hpack.Decoder()

    first, second = (
        [(str(name), str(value)) for name, value in decoder.decode(BLOCK)] for _ in range(2)
    )

    assert first == second == [(":method", "CONNECT"), (":authority", "10.0.0.9:80")]


@pytest.mark.parametrize("name", attack.FLOODS)
def test_flood_is_made_of_frames(name: str) -> None:
    pieces = itertools.islice(attack.FLOODS[name](BLOCK), 5)
    reader = FrameReader(skip=len(PREFACE))

    found = list(reader.feed(attack.PREFACE + b"".join(pieces)))

    assert len(found) >= 5


def test_every_attack_has_a_program() -> None:
    others = {"half-open", "stalled-readers", "destinations"}

    assert {one.name for one in faults.ATTACKS} == {*attack.FLOODS} | others


def test_last_words_of_a_tunnel_are_the_code_of_its_goaway() -> None:
    goaway = attack.frame(attack.GOAWAY, 0, 0, (7).to_bytes(4, "big") + (11).to_bytes(4, "big"))

    assert attack.last_words(b"before" + goaway) == "GOAWAY 11"
    assert attack.last_words(b"nothing of the kind") == "closed"


def test_words_of_a_failed_step_are_its_first_errors() -> None:
    output = "cc -c a.c\na.c:1: error: no such thing\nmake: failed\n"

    assert sources.first_errors(output) == "a.c:1: error: no such thing"
    assert sources.first_errors("one\ntwo") == "one; two"
