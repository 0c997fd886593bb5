# SPDX-License-Identifier: Apache-2.0
"""Profiles of this process in the format of pprof, which its viewers open.

Source: the comments of github.com/google/pprof, proto/profile.proto.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ztunnel_py.proto import profile_pb2 as pb

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Frame(NamedTuple):
    """A place in the program."""

    function: str
    file: str = ""
    line: int = 0
    first_line: int = 0
    """Of the function."""


class Stack(NamedTuple):
    """What was measured at one place."""

    frames: tuple[Frame, ...]
    """The innermost first."""
    values: tuple[int, ...]
    """One for each of the profile's types."""
    thread: str = ""


class Types(NamedTuple):
    """What is measured."""

    values: Sequence[tuple[str, str]]
    """Name and unit each."""
    period: tuple[str, str, int]
    """Between two samples: name, unit, how much."""


def encode(types: Types, stacks: Iterable[Stack], begun_ns: int, duration_ns: int) -> bytes:
    """A profile, compressed with gzip.

    Args:
        types: what the stacks' values are.
        stacks: one for each place.
        begun_ns: Unix time.
        duration_ns: how long it took.
    """
    strings, functions, locations = _Numbers[str](), _Numbers[Frame](), _Numbers[Frame]()
    strings[""]
    profile = pb.Profile(time_nanos=begun_ns, duration_nanos=duration_ns)
    for name, unit in types.values:
        profile.sample_type.add(type=strings[name], unit=strings[unit])
    name, unit, profile.period = types.period
    profile.period_type.type, profile.period_type.unit = strings[name], strings[unit]
    for frames, values, thread in stacks:
        sample = profile.sample.add(value=values)
        sample.location_id.extend(1 + locations[frame] for frame in frames)
        if thread:
            sample.label.add(key=strings["thread"], str=strings[thread])
    for frame, number in locations.items():
        location = profile.location.add(id=1 + number)
        function = 1 + functions[frame._replace(line=0)]
        location.line.add(function_id=function, line=frame.line)
    for frame, number in functions.items():
        text, file = strings[frame.function], strings[frame.file]
        profile.function.add(
            id=1 + number, name=text, system_name=text, filename=file, start_line=frame.first_line
        )
    profile.string_table.extend(strings)
    return gzip.compress(profile.SerializeToString(), 1)


class _Numbers(dict[T, int]):
    """Numbers of things, in the order in which they were first asked for."""

    def __missing__(self, key: T) -> int:
        self[key] = number = len(self)
        return number
