# SPDX-License-Identifier: Apache-2.0
"""The stats server on 15020: metrics text at `/metrics` and `/stats/prometheus`.

The body is OpenMetrics whatever is asked for; only the content type follows `Accept`. Compressed
as gzip or deflate; br and zstd, which ztunnel also offers, would each need a library of their own.
Source: spec identity-ops, section E.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel_py.admin.http import Answer, HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ztunnel_py.admin.http import Request

_OPENMETRICS = "application/openmetrics-text"


def stats_server(render: Callable[[], str], addresses: Sequence[tuple[str, int]]) -> HttpServer:
    """A server that answers each scrape with what `render` returns."""

    def answer(request: Request) -> Answer:
        return Answer(200, render(), content_type(request.accept), is_compressible=True)

    return HttpServer("stats", addresses, {"/metrics": answer, "/stats/prometheus": answer})


def content_type(accept: Iterable[str]) -> str:
    """The content type for the values of all `Accept` headers."""
    types = (element.split(";")[0] for value in accept for element in value.lower().split(","))
    if _OPENMETRICS in types:
        return f"{_OPENMETRICS};charset=utf-8;version=1.0.0"
    return "text/plain; charset=utf-8"
