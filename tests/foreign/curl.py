# SPDX-License-Identifier: Apache-2.0
"""curl as a client of an HTTP/2 proxy: `python -m tests.foreign.curl PROXY CHAIN KEY ROOTS URL`.

Prints as JSON what came of it. The library, because the command of Debian 12 is older than this.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys

import pycurl

HTTPS2 = 3  # CURLPROXY_HTTPS2, which the binding does not name
TIMEOUT_S = 20


def fetch(proxy: str, chain: str, key: str, roots: str, url: str) -> dict[str, int | str]:
    """Fetches `url` through a tunnel of the proxy."""
    body = io.BytesIO()
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.PROXY, proxy)
    curl.setopt(pycurl.PROXYTYPE, HTTPS2)
    curl.setopt(pycurl.HTTPPROXYTUNNEL, 1)
    curl.setopt(pycurl.PROXY_SSLCERT, chain)
    curl.setopt(pycurl.PROXY_SSLKEY, key)
    curl.setopt(pycurl.PROXY_CAINFO, roots)
    curl.setopt(pycurl.PROXY_SSL_VERIFYHOST, 0)  # an identity is not a host
    curl.setopt(pycurl.TIMEOUT, TIMEOUT_S)
    curl.setopt(pycurl.WRITEDATA, body)
    error = 0
    try:
        curl.perform()
    except pycurl.error as failure:
        error = failure.args[0]
    digest = hashlib.sha256(body.getvalue()).hexdigest()
    status: int = curl.getinfo(pycurl.RESPONSE_CODE)
    return {"error": error, "status": status, "bytes": body.tell(), "digest": digest}


if __name__ == "__main__":
    print(json.dumps(fetch(*sys.argv[1:])))
