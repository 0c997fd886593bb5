# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py redirect`: what it refuses, and that printing needs no namespace."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ztunnel_py.__main__ import run
from ztunnel_py.cli import redirect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["apply", "--pid", "4194305"], {}, "cannot open the namespace /proc/4194305/ns/net: No"),
        (["apply", "--virtual-interface", "a b"], {}, "'a b' is no name of a virtual interface"),
        (["apply"], {"HOST_PROBE_SNAT_IP": "fd00::1"}, "HOST_PROBE_SNAT_IP or .* 'fd00::1'"),
        (["apply"], {"HOST_PROBE_SNAT_IPV6": "probe"}, "HOST_PROBE_SNAT_IPV6: .* 'probe'"),
        (["print"], {"FORCE_IPTABLES_BINARY": "fast"}, "'fast'; expected legacy or nft"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environ: dict[str, str],
    words: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    status = run(["redirect", *arguments])

    said = capsys.readouterr()
    assert (status, said.out) == (redirect.FAILED, "")
    assert said.err.startswith("error: ")
    assert re.search(words, said.err)


def test_file_that_is_no_namespace_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    status = run(["redirect", "verify", "--netns", str(tmp_path / "file")])

    assert status == redirect.FAILED
    assert capsys.readouterr().err.startswith("error: cannot enter a network namespace")


def test_script_shows_what_the_options_ask_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--no-ipv6", "--ingress", "--virtual-interface", "tap0", "--backend", "iptables"]
    monkeypatch.setenv("FORCE_IPTABLES_BINARY", "nft")
    monkeypatch.setenv("HOST_PROBE_SNAT_IP", "169.254.1.1")

    status = run(["redirect", "print", *arguments])

    script = capsys.readouterr().out
    assert status == redirect.DONE
    assert "-A ISTIO_PRERT -i tap0 -p tcp -j REDIRECT --to-ports 15001\n" in script
    assert "-A ISTIO_OUTPUT -d 169.254.1.1/32 -p tcp -j ACCEPT\n" in script
    assert "iptables-nft-restore" in script
    assert not [word for word in ("ip6tables", "15006", "15053", "ip -6") if word in script]
