# SPDX-License-Identifier: Apache-2.0
"""Prints versions of the interpreter and of the C libraries that it would load, as JSON."""

from __future__ import annotations

import ctypes
import json
import platform


class _Nghttp2Info(ctypes.Structure):
    _fields_ = (
        ("age", ctypes.c_int),
        ("version_num", ctypes.c_int),
        ("version_str", ctypes.c_char_p),
    )


def libraries() -> dict[str, str]:
    """Versions by name; a library that is not there is missing."""
    found = {"python": platform.python_version()}
    try:
        crypto = ctypes.CDLL("libcrypto.so.3")
        crypto.OpenSSL_version.restype = ctypes.c_char_p
        found["openssl"] = crypto.OpenSSL_version(0).decode().split()[1]
    except OSError:
        pass
    try:
        nghttp2 = ctypes.CDLL("libnghttp2.so.14")
        nghttp2.nghttp2_version.restype = ctypes.POINTER(_Nghttp2Info)
        found["nghttp2"] = nghttp2.nghttp2_version(0).contents.version_str.decode()
    except OSError:
        pass
    return found


if __name__ == "__main__":
    print(json.dumps(libraries()))
