# SPDX-License-Identifier: Apache-2.0
"""What is told to OpenSSL for the whole process, seen in the first words of a client."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel_py import openssl
from ztunnel_py.errors import StartError

ROOT = Path(__file__).parents[1]
X25519MLKEM768 = 4588
GROUPS = """
import json
from tests.support.client_hello import ClientHello
from tests.support.tls import first_record, tls_context
from ztunnel_py import openssl

before = tls_context(None, is_server=False)
openssl.exchange_keys_post_quantum()
after = tls_context(None, is_server=False)
print(json.dumps([ClientHello.parse(first_record(one)).groups for one in (before, after)]))
"""


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3, 5), reason="X25519MLKEM768: OpenSSL 3.5")
def test_post_quantum_process_offers_that_and_nothing_else() -> None:
    argv = [sys.executable, "-c", GROUPS]  # alone, because there is no way back
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)

    before, after = json.loads(ended.stdout)

    assert len(before) > 1
    assert after == [X25519MLKEM768]


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO >= (3, 5), reason="this OpenSSL knows the group")
def test_post_quantum_is_refused_where_openssl_does_not_know_it() -> None:
    with pytest.raises(StartError, match=r"COMPLIANCE_POLICY=pqc: .* OpenSSL 3\.0"):
        openssl.exchange_keys_post_quantum()
