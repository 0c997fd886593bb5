# SPDX-License-Identifier: Apache-2.0
"""The command itself: what it knows, how it ends, what it completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel_py.__main__ import run
from ztunnel_py.cli import root

ROOT = Path(__file__).parents[2]
OURS = [sys.executable, "-m", "ztunnel_py"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help"]) == 0

    shown = capsys.readouterr().out
    assert not [name for name in root._MODULES if f"\n  {name} " not in shown]


@pytest.mark.parametrize("name", root._MODULES)
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [run([name, "--help"]), run(["help", name])]

    shown = capsys.readouterr()
    assert (statuses, shown.err) == ([0, 0], "")
    assert shown.out.startswith(f"Usage: ztunnel-py {name} ")


def test_unknown_command_is_1_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["foo", "--bar"]) == 1

    said = capsys.readouterr()
    assert said.err == "unknown command: foo\n"
    assert said.out.startswith("Usage: ztunnel-py ")


@pytest.mark.parametrize(
    "argv",
    [["--nonsense"], ["certs", "--nonsense"], ["why", "a"], ["tunnels", "x"], ["redirect", "fly"]],
)
def test_bad_options_are_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: ztunnel-py ")


def test_version_may_be_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTIO_META_ISTIO_VERSION", "1.99")

    assert run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["istioVersion"] == "1.99"


def test_proxy_starts_without_the_libraries_of_the_command_line() -> None:
    code = (
        "import sys; from ztunnel_py.__main__ import run; "
        "status = run(['proxy', 'ztunnel']); "
        "print(status, sorted({'click', 'rich'} & set(sys.modules)))"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"ENABLE_PROXY": "perhaps"},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert ended.stdout == "1 []\n"
    assert "ENABLE_PROXY" in ended.stderr


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "ztunnel-py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ztunnel_py "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(ztunnel-py completion bash)"; '
        "ask() { COMPREPLY=(); COMP_WORDS=(ztunnel-py $1); COMP_CWORD=$2; "
        '_ztunnel_py_completion ztunnel-py; echo "${COMPREPLY[@]}"; }; '
        "ask wo 1; ask '' 1; ask 'log --a' 2"
    )

    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )

    first, every, option = ended.stdout.splitlines()
    assert (first, option) == ("workloads", "--admin")
    assert every.split() == list(root._MODULES)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_served(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_ZTUNNEL_PY_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_reader_that_goes_leaves_no_traceback() -> None:
    program = subprocess.Popen(
        [*OURS, "help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()

    said = program.stderr.read()
    program.stderr.close()

    assert program.wait(20) == 1
    assert b"Traceback" not in said
