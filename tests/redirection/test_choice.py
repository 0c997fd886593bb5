# SPDX-License-Identifier: Apache-2.0
"""Which programs are chosen, by what is installed and asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ztunnel_py.redirection import choice, programs
from ztunnel_py.redirection.iptables import Iptables
from ztunnel_py.redirection.nftables import Nftables
from ztunnel_py.redirection.plan import Family
from ztunnel_py.redirection.programs import RedirectionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.redirection.choice import Backend

FOUR = (Family.IPV4,)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs programs, which show no rules, where nothing else is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SYSTEM", ())

    def install(names: str) -> None:
        for name in names.split():
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)

    return install


PLAIN, NFT, LEGACY = "iptables-save", "iptables-nft-save", "iptables-legacy-save"


@pytest.mark.parametrize(
    ("installed", "asked", "chosen"),
    [
        (f"{PLAIN} {NFT} {LEGACY} nft", "auto", Iptables("nft")),
        (f"{PLAIN} {NFT} {LEGACY} nft", "iptables", Iptables("nft")),
        (f"{PLAIN} {NFT} {LEGACY} nft", "legacy", Iptables("legacy")),
        (f"{PLAIN} {NFT} {LEGACY} nft", "nft", Nftables()),
        (f"{PLAIN} nft", "auto", Iptables("")),
        (LEGACY, "iptables", Iptables("legacy")),
        ("nft", "auto", Nftables()),
    ],
)
def test_first_of_those_that_are_installed(
    install: Callable[[str], None], installed: str, asked: str, chosen: Backend
) -> None:
    install(installed)

    assert choice.choose(asked, {}, FOUR) == chosen


@pytest.mark.parametrize(
    ("installed", "asked", "missing"),
    [
        ("", "auto", "'iptables' is missing; install the package iptables"),
        ("nft", "iptables", "'iptables' is missing; install the package iptables"),
        (NFT, "legacy", "'iptables-legacy' is missing; install the package iptables"),
        (NFT, "nft", "'nft' is missing; install the package nftables"),
    ],
)
def test_what_is_not_installed_is_named(
    install: Callable[[str], None], installed: str, asked: str, missing: str
) -> None:
    install(installed)

    with pytest.raises(RedirectionError, match=missing):
        choice.choose(asked, {}, FOUR)


@pytest.mark.spec("redir-21")
@pytest.mark.parametrize("asked", ["auto", "iptables"])
@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_forced_kind_of_iptables_is_used(
    install: Callable[[str], None], asked: str, variant: str
) -> None:
    install(f"{PLAIN} {NFT} {LEGACY} nft")

    assert choice.choose(asked, {choice.FORCE: variant}, FOUR) == Iptables(variant)


def test_forced_kind_does_not_concern_nft(install: Callable[[str], None]) -> None:
    install(f"{NFT} nft")

    assert choice.choose("nft", {choice.FORCE: "nft"}, FOUR) == Nftables()


@pytest.mark.spec("redir-23")
def test_node_with_the_ipset_of_probes_keeps_to_iptables(
    install: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    install(f"{NFT} nft")

    assert choice.choose("nft", {}, FOUR, has_probe_set=True) == Iptables("nft")
    assert "nftables is used after a reboot" in capfd.readouterr().err
