# SPDX-License-Identifier: Apache-2.0
"""A control-plane server as the settings describe it: discovery or the authority.

What its roots and its token come from is decided when it is made, once, at start.
Source: spec state, section 1.1; identity-ops, sections A.3 and A.11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztunnel_py.rpc.address import TcpAddress
from ztunnel_py.rpc.channel import Channel
from ztunnel_py.rpc.errors import OpenError, Status
from ztunnel_py.rpc.roots import Roots
from ztunnel_py.rpc.tls import client_context
from ztunnel_py.rpc.token import Token

if TYPE_CHECKING:
    from ztunnel_py.config_model import Config
    from ztunnel_py.config_values import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Everything that is needed to call one server."""

    address: TcpAddress
    roots: Roots
    second_name: str | None
    tls12: bool
    token: Token | None
    headers: tuple[tuple[str, Secret], ...]

    @classmethod
    def discovery(cls, config: Config) -> Server:
        """The server of `XDS_ADDRESS`, which has to be set."""
        assert config.xds_address is not None
        return cls(
            address=TcpAddress.parse(config.xds_address),
            roots=Roots.decide("XDS_ROOT_CA", config.xds_root_ca),
            second_name=config.alt_xds_hostname,
            tls12=config.tls12,
            token=_token(config),
            headers=config.xds_headers,
        )

    @classmethod
    def authority(cls, config: Config) -> Server:
        """The server of `CA_ADDRESS`, which has to be set."""
        assert config.ca_address is not None
        return cls(
            address=TcpAddress.parse(config.ca_address),
            roots=Roots.decide("CA_ROOT_CA", config.ca_root_ca),
            second_name=config.alt_ca_hostname,
            tls12=config.tls12,
            token=_token(config),
            headers=config.ca_headers,
        )

    def channel(self) -> Channel:
        """A new channel, with the roots as they are now.

        Raises:
            RootsError: there are no usable roots now.
            OpenError: the address is not one of `https`.
        """
        if self.address.scheme != "https":
            raise OpenError(Status.UNKNOWN, f"{self.address}: only https can be connected to")
        context = client_context(self.roots, second_name=self.second_name, tls12=self.tls12)
        return Channel(self.address, context, self._request_headers)

    def _request_headers(self) -> list[tuple[str, str]]:
        token = [] if self.token is None else self.token.headers()
        return [*token, *((name, secret.value) for name, secret in self.headers)]


def _token(config: Config) -> Token | None:
    if config.auth_token is None:
        return None
    return Token.decide(config.auth_token, config.cluster_id)
