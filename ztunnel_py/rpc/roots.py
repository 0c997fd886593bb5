# SPDX-License-Identifier: Apache-2.0
"""What a control-plane server's certificate is verified with.

Where the roots come from is decided once, at start: a path that exists, or is absolute, is a file,
read anew for each use; `SYSTEM` is what the system trusts; anything else is the PEM text itself.
Source: ztunnel src/config.rs, src/tls/control.rs; there a file that comes later is never read.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from ztunnel_py.rpc.errors import RootsError
from ztunnel_py.stamp import Stamp

_SYSTEM = "SYSTEM"
_MOST_BYTES = 4 << 20
_PEM = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class Roots:
    """One source of roots."""

    variable: str
    """The setting they come from, for messages."""
    text: str
    """The value of that setting."""
    path: Path | None
    """The file, if the value names one."""

    @classmethod
    def decide(cls, variable: str, text: str) -> Roots:
        """The source that a setting names."""
        path = Path(text)
        try:
            is_file = path.exists()
        except (OSError, ValueError):  # PEM text is too long for a path
            is_file = False
        return cls(variable, text, path if is_file or text.startswith("/") else None)

    def stamp(self) -> Stamp | None:
        """Tells whether a file was replaced or written since; None if there is none."""
        return None if self.path is None else Stamp.of(self.path)

    def add_to(self, context: ssl.SSLContext) -> None:
        """Makes `context` trust the roots as they are now, each an anchor even if not self-signed.

        Raises:
            RootsError: they cannot be read, or there is none.
        """
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if self.path is None and self.text == _SYSTEM:
            self._add_system(context)
            return
        try:
            context.load_verify_locations(cadata=self._pem())
        except (ssl.SSLError, ValueError, TypeError) as error:  # TypeError: not ASCII
            raise RootsError(f"{self}: no valid certificates: {error}") from error

    def _add_system(self, context: ssl.SSLContext) -> None:
        paths = ssl.get_default_verify_paths()
        if paths.cafile is None and paths.capath is None:
            raise RootsError(f"{self}: this system has no store of trusted certificates")
        context.load_default_certs()

    def _pem(self) -> str:
        if self.path is not None:
            try:
                with self.path.open("rb") as file:
                    content = file.read(_MOST_BYTES)
            except OSError as error:
                raise RootsError(f"{self}: cannot be read: {error.strerror}") from error
            return content.decode("ascii", "backslashreplace")
        if _PEM not in self.text:
            raise RootsError(f"{self}: was no file when the proxy started, and is not PEM text")
        return self.text

    def __str__(self) -> str:
        shown = "PEM text" if self.path is None and _PEM in self.text else self.text
        return f"{self.variable} ({shown})"
