# SPDX-License-Identifier: Apache-2.0
"""What issues certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ztunnel_py.identity.certificates import WorkloadCertificate
    from ztunnel_py.identity.spiffe import Identity

    Renew = Callable[[Identity], bool]
    """Told of an identity that may have a new certificate; whether somebody needs it."""


class IdentityError(Exception):
    """No certificate can be had for an identity now; the text is shown in logs and dumps."""


class CertificateAuthority(Protocol):
    """Signs for identities."""

    async def issue(self, identity: Identity) -> WorkloadCertificate:
        """A certificate with a fresh key.

        Raises:
            IdentityError: refused or unreachable.
        """
