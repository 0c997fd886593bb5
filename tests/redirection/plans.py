# SPDX-License-Identifier: Apache-2.0
"""Plans of all kinds, for properties."""

from __future__ import annotations

from hypothesis import strategies as st

from ztunnel_py.redirection.plan import Options

OPTIONS = st.builds(
    Options,
    has_ipv6=st.booleans(),
    has_dns=st.booleans(),
    is_ingress=st.booleans(),
    virtual_interfaces=st.lists(
        st.from_regex(r"[a-z][a-z0-9.@-]{0,14}", fullmatch=True), max_size=3
    ).map(tuple),
)
