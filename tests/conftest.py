# SPDX-License-Identifier: Apache-2.0
"""What every test shares: one event loop, derandomised hypothesis in CI, one test authority."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import settings

from ztunnel_py.identity import fake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that runs in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> fake.FakeCa:
    """A certificate authority of this run."""
    directory: Path = tmp_path_factory.mktemp("authority")
    directory.chmod(0o700)
    return fake.FakeCa(fake.shared_root(directory), ttl_s=3600)


@pytest.fixture(scope="session")
def certify(authority: fake.FakeCa) -> Callable[[Identity], WorkloadCertificate]:
    """Certificates of the run's authority, made once per identity."""
    made: dict[Identity, WorkloadCertificate] = {}

    def certify(identity: Identity) -> WorkloadCertificate:
        if identity not in made:
            issuing = authority.issue(identity)
            try:
                issuing.send(None)  # the fake CA never waits
            except StopIteration as done:
                made[identity] = done.value
        return made[identity]

    return certify
