# SPDX-License-Identifier: Apache-2.0
"""What is running: the build, as ztunnel's version line and dump name it."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ztunnel_py import __version__

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """One build. Source: spec identity-ops, sections C.5 and D.3."""

    version: str = __version__
    git_revision: str = UNKNOWN
    rust_version: str = ""
    """Kept for the tools that read it; names the interpreter."""
    build_profile: str = "python"
    build_status: str = UNKNOWN
    istio_version: str = UNKNOWN
    crypto_provider: str = "openssl"

    @classmethod
    def running(cls, istio_version: str = UNKNOWN) -> BuildInfo:
        """This build, reporting itself as part of `istio_version`."""
        interpreter = f"{platform.python_implementation()} {platform.python_version()}"
        return cls(rust_version=interpreter, istio_version=istio_version)

    def dump(self) -> dict[str, str]:
        """The `version` object of `/config_dump`."""
        return {
            "version": self.version,
            "gitRevision": self.git_revision,
            "rustVersion": self.rust_version,
            "buildProfile": self.build_profile,
            "buildStatus": self.build_status,
            "istioVersion": self.istio_version,
            "cryptoProvider": self.crypto_provider,
        }

    def __str__(self) -> str:
        pairs = (f'{name[0].upper()}{name[1:]}:"{value}"' for name, value in self.dump().items())
        return f"version.BuildInfo{{{', '.join(pairs)}}}"
