# SPDX-License-Identifier: Apache-2.0
"""Prints docs/configuration.md: `python -m ztunnel_py.config_doc > docs/configuration.md`."""

from __future__ import annotations

import sys

from ztunnel_py.config_settings import SETTINGS

_HEAD = """\
# Configuration

All settings are environment variables, read once at start. A wrong value ends the start with status
1 and a message that names the variable. Names, defaults and grammar are ztunnel's, so the official
chart's environment works; those marked *ours* exist here only.

Precedence: a variable of its own, `ISTIO_META_*` (metadata only), `PROXY_CONFIG`, the mesh file
`./etc/istio/config/mesh`, the default.

- Booleans are `true` or `false`, nothing else. Numbers are decimal.
- Durations are sums such as `90s`, `1m30s` or `3m + 29ms`; a bare number is seconds.
- Header values and tokens are secrets: they appear in no log line and no dump.
- Log filters: `<level>`, `<target>=<level>`, `<target>[{<field>}]=<level>` or `<target>`, separated
  by commas; the longest matching target decides.

Fixed ports: 15008 (HBONE), 15006 (plaintext in), 15001 (out), 15080 (SOCKS5), 15021 (readiness).

The defaults are those of a node of a cluster; a run without one needs `XDS_ADDRESS=""` and
`FAKE_CA=true`. `ENABLE_PROXY=false` is refused: this version is nothing without its proxy.

| Variable | Unit | Default | Meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """The whole page."""
    return _HEAD + "".join(
        f"| `{setting.variable}` | {setting.kind.unit} | {_default(setting.default)} "
        f"| {setting.meaning} |\n"
        for setting in SETTINGS
    )


def _default(text: str | None) -> str:
    if text is None:
        return "unset"
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    sys.stdout.write(markdown())
