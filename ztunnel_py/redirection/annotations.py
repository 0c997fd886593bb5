# SPDX-License-Identifier: Apache-2.0
"""What a pod's annotations say about its redirection.

Source: spec redirection, section 1.3.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ztunnel_py.telemetry.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ztunnel_py.redirection.plan import Options

BYPASS_INBOUND = "ambient.istio.io/bypass-inbound-capture"
DNS_CAPTURE = "ambient.istio.io/dns-capture"
VIRTUAL_INTERFACES = "istio.io/reroute-virtual-interfaces"
_SWITCH = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_log = logger("ztunnel::redirection")


def options_of(pod: str, annotations: Mapping[str, str], node: Options) -> Options:
    """The options of a pod: those of the node, but for what its annotations say.

    Text that is no boolean counts as absent; a warning names `pod`.
    """
    names = (name.strip() for name in annotations.get(VIRTUAL_INTERFACES, "").split(","))
    return dataclasses.replace(
        node,
        has_dns=_switch(pod, annotations, DNS_CAPTURE, otherwise=node.has_dns),
        is_ingress=_switch(pod, annotations, BYPASS_INBOUND, otherwise=node.is_ingress),
        virtual_interfaces=tuple(name for name in names if name),
    )


def _switch(pod: str, annotations: Mapping[str, str], key: str, *, otherwise: bool) -> bool:
    text = annotations.get(key)
    if text is None:
        return otherwise
    if text not in _SWITCH:
        _log.warn(f"pod {pod}: annotation {key} is {text!r}, no boolean; it is ignored")
        return otherwise
    return _SWITCH[text]
