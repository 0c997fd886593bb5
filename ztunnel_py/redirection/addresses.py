# SPDX-License-Identifier: Apache-2.0
"""The addresses of a pod, as its own interfaces have them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from ztunnel_py.redirection.programs import call_inside

if TYPE_CHECKING:
    from ztunnel_py.netns import Netns
    from ztunnel_py.redirection.host import Address

_GLOBAL = 0


def addresses_of(where: Netns) -> list[Address]:
    """All that others can reach it by.

    Raises:
        RedirectionError: the namespace cannot be entered.
    """
    return call_inside(where, _read)


def _read() -> list[Address]:
    with IPRoute() as kernel:
        found = [message for message in kernel.get_addr() if message["scope"] == _GLOBAL]
    return [ipaddress.ip_address(message.get("IFA_ADDRESS")) for message in found]
