# SPDX-License-Identifier: Apache-2.0
"""The scripts in `iptables/` are those of the plan."""

from __future__ import annotations

import pytest

from ztunnel_py.redirection.scripts import FOLDER, files


@pytest.mark.parametrize("name", files())
def test_script_is_what_the_plan_says(name: str) -> None:
    assert (FOLDER / name).read_text() == files()[name], (
        "run python -m ztunnel_py.redirection.scripts"
    )


def test_there_are_no_other_scripts() -> None:
    assert {path.name for path in FOLDER.glob("*.sh")} == set(files())
