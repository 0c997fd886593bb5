# SPDX-License-Identifier: Apache-2.0
"""A certificate from files, for a virtual machine or a host where something else renews them.

The files are looked at every two seconds and read again when one has changed. A replacement that
cannot be used leaves the present certificate in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.identity.ca import IdentityError
from ztunnel_py.identity.chain import (
    ChainError,
    assembled,
    certificates,
    first_identity,
    private_key,
)
from ztunnel_py.stamp import Stamp

if TYPE_CHECKING:
    from pathlib import Path

    from ztunnel_py.clock import Clock, Timer
    from ztunnel_py.config_model import IdentityFiles
    from ztunnel_py.identity.ca import Renew
    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

_LOOK_S = 2.0
_MOST_BYTES = 1 << 20


class Files:
    """Certificate, key and roots in one file each, PEM."""

    def __init__(self, files: IdentityFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._asked: set[Identity] = set()
        self._stamps = self._look()
        self._timer: Timer | None = None

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """What the files hold now.

        Raises:
            IdentityError: that cannot be used, or is somebody else's.
        """
        self._asked.add(identity)
        paths = self._files
        try:
            chain = certificates(_read(paths.certificate))
            key, roots = private_key(_read(paths.key)), certificates(_read(paths.roots))
            made = assembled(identity, chain, roots, key)
        except ChainError as error:
            listed = ", ".join(map(str, paths))
            raise IdentityError(f"certificate from files ({listed}): {error}") from error
        found = first_identity(chain[0])
        if found != identity:
            raise IdentityError(f"the certificate in {paths.certificate} is of {found}")
        return made

    def start(self, renew: Renew) -> None:
        """Watches the files."""

        def look() -> None:
            found = self._look()
            if found != self._stamps:
                self._stamps = found
                for identity in self._asked:
                    renew(identity)
            self._timer = self._clock.call_later(_LOOK_S, look)

        look()

    def stop(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> list[Stamp | None]:
        return [Stamp.of(path) for path in self._files]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise ChainError(f"cannot read {path}: {error.strerror}") from error
