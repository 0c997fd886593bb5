# SPDX-License-Identifier: Apache-2.0
"""TLS toward a control-plane server: the newest version, our roots, one or two accepted names.

Source: ztunnel src/tls/control.rs, src/tls/lib.rs.
"""

from __future__ import annotations

import functools
import ipaddress
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel_py.rpc.roots import Roots

_TLS12_SUITES = ":".join(
    f"ECDHE-{key}-AES{bits}"
    for key in ("ECDSA", "RSA")
    for bits in ("256-GCM-SHA384", "128-GCM-SHA256")
)


def client_context(roots: Roots, *, second_name: str | None, tls12: bool) -> ssl.SSLContext:
    """A client's TLS, with the roots as they are now.

    Args:
        roots: what the server's certificate is verified with.
        second_name: accepted from the server if its certificate does not have the name dialled.
        tls12: also accept TLS 1.2.

    Raises:
        RootsError: there are no usable roots.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    context.set_ciphers(_TLS12_SUITES)
    context.set_alpn_protocols(["h2"])
    context.hostname_checks_common_name = False
    roots.add_to(context)
    if second_name is not None:
        # The library would check the name dialled only, which also is what the server is told.
        context.check_hostname = False
        context.sslobject_class = _checking(second_name)
    return context


@functools.cache
def _checking(second_name: str) -> type[ssl.SSLObject]:
    """TLS whose handshake fails if the verified certificate has neither name."""

    class TwoNames(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            names = (self.server_hostname or "", second_name)
            if not any(certifies(self.getpeercert() or {}, name) for name in names):
                raise ssl.SSLCertVerificationError(
                    f"the certificate is valid neither for {names[0]} nor for {second_name}"
                )

    return TwoNames


def certifies(certificate: ssl._PeerCertRetDictType, name: str) -> bool:
    """A certificate as `getpeercert` shows it is for `name`, a DNS name or an IP address.

    A wildcard stands for one whole label, the first. Source: RFC 9525, section 6.3.
    """
    names = [entry for entry in certificate.get("subjectAltName", ()) if isinstance(entry, tuple)]
    try:
        wanted = ipaddress.ip_address(name)
    except ValueError:
        lowered = name.lower().removesuffix(".")
        _, _, parent = lowered.partition(".")
        accepted = {lowered, f"*.{parent}"} if parent else {lowered}
        return any(kind == "DNS" and str(value).lower() in accepted for kind, value in names)
    return any(
        kind == "IP Address" and ipaddress.ip_address(str(value)) == wanted for kind, value in names
    )
