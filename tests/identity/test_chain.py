# SPDX-License-Identifier: Apache-2.0
"""Certificates in PEM and DER, whole, damaged and made up."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as some

from tests.support.authority import Authority, uris
from tests.support.spire import der, key_der, parsed
from ztunnel_py.identity.chain import (
    ChainError,
    assembled,
    certificates,
    der_certificates,
    first_identity,
    private_key,
)
from ztunnel_py.identity.spiffe import Identity

CART = Identity("cluster.local", "shop", "cart")
ROOT = Authority("root")
ISSUED = ROOT.intermediate("below").issue(CART)
CHAIN = der(ISSUED.chain_pem)


def test_der_certificates_are_told_apart() -> None:
    assert der_certificates(CHAIN) == certificates(ISSUED.chain_pem)
    assert der_certificates(b"") == []


@given(some.integers(1, len(CHAIN) - 1))
def test_der_that_is_cut_off_is_refused_unless_between_certificates(length: int) -> None:
    first = len(parsed(ISSUED.chain_pem)[0].public_bytes(Encoding.DER))
    if length == first:
        assert len(der_certificates(CHAIN[:length])) == 1
    else:
        with pytest.raises(ChainError):
            der_certificates(CHAIN[:length])


@given(some.binary(min_size=1, max_size=64))
def test_bytes_that_are_no_certificates_are_refused(garbage: bytes) -> None:
    for read in (der_certificates, certificates, private_key):
        with pytest.raises(ChainError):
            read(garbage)


@pytest.mark.parametrize("read", [certificates, der_certificates])
def test_more_than_a_chain_can_be_is_refused(read: object) -> None:
    assert callable(read)
    with pytest.raises(ChainError, match="the limit is 1048576"):
        read(bytes((1 << 20) + 1))


def test_key_may_be_pem_or_der() -> None:
    leaf = certificates(ISSUED.chain_pem)[0]

    keys = private_key(ISSUED.key_pem), private_key(key_der(ISSUED))

    assert all(key.public_key() == leaf.public_key() for key in keys)


def test_certificate_is_that_of_its_leaf() -> None:
    chain, roots = certificates(ISSUED.chain_pem), certificates(ISSUED.roots_pem)

    made = assembled(CART, chain, roots, private_key(ISSUED.key_pem))

    assert made == ISSUED


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((str(CART),), CART),
        (("spiffe://td/ns/a/sa/b", str(CART)), Identity("td", "a", "b")),
        (("https://elsewhere", str(CART)), None),
        ((), None),
    ],
)
def test_identity_of_a_leaf_is_its_first_uri(
    names: tuple[str, ...], found: Identity | None
) -> None:
    (leaf,) = certificates(ROOT.issue(CART, uris(*names)).chain_pem)

    assert first_identity(leaf) == found
