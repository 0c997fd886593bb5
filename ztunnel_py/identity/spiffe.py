# SPDX-License-Identifier: Apache-2.0
"""A workload's SPIFFE identity: trust domain, namespace, service account."""

from __future__ import annotations

from typing import NamedTuple

_PREFIX = "spiffe://"


class Identity(NamedTuple):
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; parts may be empty."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{_PREFIX}{self.principal}"

    @property
    def principal(self) -> str:
        """The identity without its scheme, as authorization policies name it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The identity written in `text`. Source: ztunnel src/identity/manager.rs.

        Raises:
            ValueError: no `spiffe://` scheme, or not exactly the five parts td/ns/../sa/..
        """
        parts = text.removeprefix(_PREFIX).split("/")
        if not text.startswith(_PREFIX) or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise ValueError(f"{text!r} is not spiffe://<td>/ns/<ns>/sa/<sa>")
        return cls(parts[0], parts[2], parts[4])
