# SPDX-License-Identifier: Apache-2.0
"""The tree of a local state: edits applied to it, and the store that it loads into."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import yaml

from ztunnel_py.state.store import Store
from ztunnel_py.xds import local

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def loaded(tree: object) -> Store:
    """The store after `tree` was written to a file and read as one."""
    store = Store()
    store.apply(local.parse(yaml.safe_dump(tree), "tree").updates)
    return store


def edited(tree: object, edits: Iterable[Mapping[str, Any]]) -> Any:
    """A copy of `tree` after the edits, which are as in the JSON of an explanation."""
    new = copy.deepcopy(tree)
    for edit in edits:
        _apply(new, edit["op"], edit["path"], edit.get("value"))
    return new


def _apply(tree: Any, op: str, path: Sequence[Any], value: object) -> None:
    *above, last = path
    inside = tree
    for part in above:
        inside = inside[_key(inside, part)]
    key = _key(inside, last)
    match op:
        case "set":
            inside[key] = value
        case "add":
            inside[key].append(value)
        case "remove":
            del inside[key]
        case _:
            raise ValueError(f"unknown edit {op!r}")


def _key(inside: Any, part: Any) -> Any:
    """An element of a list is chosen by what it has, or by its index."""
    if not isinstance(part, dict):
        return part
    (index,) = [i for i, one in enumerate(inside) if all(one.get(key) == part[key] for key in part)]
    return index
