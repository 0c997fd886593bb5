# SPDX-License-Identifier: Apache-2.0
"""Which certificates no longer count, by the lists of their authorities.

Source: spec identity-ops, A.10. A list counts for certificates of the authority that it names if
that authority signed it. An authority without a list revokes nothing; one whose lists are all
signed by somebody else is not trusted at all. When a list should have been renewed is not looked
at.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence


class RevokedError(Exception):
    """A certificate is revoked, or nobody can tell."""


class Revocation:
    """The lists in force; counts whom they turn away."""

    def __init__(self, events: Counter[str]) -> None:
        self._events = events
        self._lists: list[x509.CertificateRevocationList] = []

    def use(self, lists: Sequence[bytes]) -> None:
        """Takes lists, DER, in place of all others.

        Raises:
            ValueError: one cannot be read.
        """
        self._lists = [x509.load_der_x509_crl(der) for der in lists]

    def check(self, chain: Sequence[bytes], *, is_client: bool) -> None:
        """Looks for a chain, DER, verified, the leaf first and the anchor last.

        Args:
            chain: of the other side.
            is_client: we are the client, so that the server is looked for.

        Raises:
            RevokedError: all but the anchor are looked for, and one is not to be trusted.
        """
        if not self._lists:
            return
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        for certificate, issuer in pairwise(certificates):
            self._check_one(certificate, issuer, is_client, is_anchor=issuer is certificates[-1])

    def _check_one(
        self, it: x509.Certificate, issuer: x509.Certificate, is_client: bool, is_anchor: bool
    ) -> None:
        named = [one for one in self._lists if one.issuer == it.issuer]
        # An anchor is trusted with lists whatever its certificate says.
        own = [one for one in named if is_anchor or _may_sign_lists(issuer)]
        own = [one for one in own if one.is_signature_valid(issuer.public_key())]  # type: ignore[arg-type]
        serial = it.serial_number
        if any(one.get_revoked_certificate_by_serial_number(serial) is not None for one in own):
            self._events[f"crl_rejections_{'source' if is_client else 'destination'}"] += 1
            raise RevokedError("invalid peer certificate: certificate revoked")
        if named and not own:
            raise RevokedError(
                "invalid peer certificate: the revocation list of its issuer is not signed by it; "
                "check CRL_PATH"
            )


def _may_sign_lists(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True
