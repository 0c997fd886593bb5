# SPDX-License-Identifier: Apache-2.0
"""What OpenSSL can do here, and what it is told for the whole process; asked before all else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import ssl

from ztunnel_py.errors import StartError

_CONFIGURATION = b"""\
configuration = top
[top]
ssl_conf = sides
[sides]
system_default = every
[every]
Groups = X25519MLKEM768
"""
_ONLY_X25519MLKEM768 = bytes.fromhex("000a0004000211ec")
"""How a ClientHello offers it: RFC 8446, section 4.2.7."""


def check() -> None:
    """Looks whether there is any TLS, before libraries trip over its absence.

    Raises:
        StartError: OPENSSL_CONF asks for a provider that is not there, FIPS most likely.
    """
    configuration = os.environ.get("OPENSSL_CONF")
    if configuration is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        raise StartError(
            f"OPENSSL_CONF={configuration}: OpenSSL cannot speak TLS with it ({error.reason}); "
            "check whether the providers that it names are installed"
        ) from error
    _check_keys(configuration)


def _check_keys(configuration: str) -> None:
    from cryptography.exceptions import InternalError
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        ec.generate_private_key(ec.SECP256R1())
    except InternalError as error:
        raise StartError(
            f"OPENSSL_CONF={configuration}: the Python package cryptography cannot make keys with "
            "it; its wheels bring an OpenSSL of their own: build it against the system's"
        ) from error


def exchange_keys_post_quantum() -> None:
    """Makes every TLS side that is made from now on exchange keys by X25519MLKEM768 only.

    Python's ssl cannot choose, so OpenSSL is told as its configuration file would tell it; what
    that file says of TLS in general ("system_default") counts no more. The engine needs none of
    this; the channels to the control plane do. Source: spec identity-ops, A.7.

    Raises:
        StartError: it cannot be had.
    """
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        raise StartError(
            "COMPLIANCE_POLICY=pqc: X25519MLKEM768 is not known to OpenSSL, which has it from 3.5 "
            f"on (this is {ssl.OPENSSL_VERSION})"
        )
    _first_words()  # so that OPENSSL_CONF is not read afterwards
    try:
        _configure(_CONFIGURATION)
        is_done = _ONLY_X25519MLKEM768 in _first_words()
    except (OSError, AttributeError) as error:  # built in, not exported, not accepted
        raise StartError(f"COMPLIANCE_POLICY=pqc: OpenSSL cannot be configured: {error}") from error
    if not is_done:
        raise StartError("COMPLIANCE_POLICY=pqc: OpenSSL still offers other ways to exchange keys")


def _configure(text: bytes) -> None:
    """Loads a configuration into the library that Python's ssl uses.

    Raises:
        OSError, AttributeError: that library is part of Python, or does not accept it.
    """
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    library.BIO_new_mem_buf.restype = library.NCONF_new.restype = ctypes.c_void_p
    source = ctypes.c_void_p(library.BIO_new_mem_buf(text, len(text)))
    read = ctypes.c_void_p(library.NCONF_new(None))
    is_accepted = (
        library.NCONF_load_bio(read, source, None) > 0
        and library.CONF_modules_load(read, b"configuration", 0) > 0
    )
    library.NCONF_free(read)
    library.BIO_free(source)
    if not is_accepted:
        raise OSError("it does not accept its configuration")


def _first_words() -> bytes:
    """The ClientHello of a new context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="none").do_handshake()
    return said.read()
