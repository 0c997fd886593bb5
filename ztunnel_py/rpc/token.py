# SPDX-License-Identifier: Apache-2.0
"""The token that tells a control-plane server who asks.

A value that names an existing path at start is a file, read anew for every request: that is how a
token is renewed. Any other value is the token. Nothing is trimmed.
Source: ztunnel src/identity/auth.rs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ztunnel_py.rpc.errors import OpenError, Status

if TYPE_CHECKING:
    from ztunnel_py.config_values import Secret

_MOST_BYTES = 64 << 10
_VALUE = re.compile(rb"[\t\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Token:
    """What `AUTH_TOKEN` stands for, and the cluster that the token is of."""

    source: Secret
    path: Path | None
    """The file, if the value named one when the program started."""
    cluster_id: str

    @classmethod
    def decide(cls, source: Secret, cluster_id: str) -> Token:
        """The token that a setting names."""
        path = Path(source.value)
        try:
            is_file = path.exists()
        except (OSError, ValueError):  # a token may be too long for a path
            is_file = False
        return cls(source, path if is_file else None, cluster_id)

    def headers(self) -> list[tuple[str, str]]:
        """Headers of one request. Cost: reads the file.

        Raises:
            OpenError: there is no token now, or no header can carry it.
        """
        token = self._read()
        if not _VALUE.fullmatch(token):
            raise OpenError(
                Status.UNKNOWN,
                f"the token {self} is not printable ASCII, so no header can carry it; a file must "
                "not end with a newline",
            )
        return [("authorization", f"Bearer {token.decode()}"), ("clusterid", self.cluster_id)]

    def _read(self) -> bytes:
        if self.path is None:
            return self.source.value.encode()
        try:
            with self.path.open("rb") as file:
                content = file.read(_MOST_BYTES)
        except OSError as error:
            message = f"cannot read the token {self}: {error.strerror}"
            raise OpenError(Status.UNKNOWN, message) from error
        if not content:
            raise OpenError(Status.UNKNOWN, f"token file exists, but was empty: {self.path}")
        return content

    def __str__(self) -> str:
        return "of AUTH_TOKEN" if self.path is None else f"file {self.path}"
