# SPDX-License-Identifier: Apache-2.0
"""Which hostnames a query's name may stand for: search domains, Kubernetes forms, wildcards.

A client's resolver has already appended search domains as it likes (ndots), so a name comes in many
forms; what is done here takes them back. Names are labels in lower case without the root, and
nothing here looks at what exists. Source: spec state, section 7.4; ztunnel src/dns/server.rs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Labels = tuple[str, ...]

_HOST_LABEL = re.compile(rb"[-_*A-Za-z0-9]+")
_SVC = "svc"


class Alias(NamedTuple):
    """A name that the asked one may stand for."""

    name: Labels
    stripped: Labels | None = None
    """What was left of the asked name when a search domain was taken off; None: nothing was."""


class View(NamedTuple):
    """How a client sees names."""

    namespace: str
    domain: Labels
    """Of the cluster."""
    search: tuple[Labels, ...]
    """Domains that its resolver may append."""


def parse(text: str) -> Labels:
    """The labels of a written name; a dot at its end does not count."""
    return tuple(text.lower().rstrip(".").split("."))


def hostname(labels: Sequence[bytes]) -> Labels | None:
    """The labels of a name on the wire, the root left out; None: no host is called that."""
    if not all(_HOST_LABEL.fullmatch(label) for label in labels):
        return None
    return tuple(label.decode().lower() for label in labels) or None


def kubernetes_search(namespace: str, domain: Labels) -> tuple[Labels, ...]:
    """The search list that Kubernetes gives a pod of `namespace`."""
    return ((namespace, _SVC, *domain), (_SVC, *domain), domain)


def aliases(asked: Labels, view: View) -> list[Alias]:
    """What `asked` may stand for, in the order of preference, nothing twice."""
    found = {asked: Alias(asked)}
    for name in _expanded(asked, view):
        found.setdefault(name, Alias(name))
    for domain in view.search:
        if len(asked) <= len(domain) or asked[-len(domain) :] != domain:
            continue
        stripped = asked[: -len(domain)]
        for name in (stripped, *_expanded(stripped, view)):
            found.setdefault(name, Alias(name, stripped))
    return list(found.values())


def candidates(name: Labels) -> Iterator[str]:
    """Hostnames under which a service for `name` may be known: itself, then ever wider wildcards.

    No wildcard covers a name of one label, and none is as wide as everything.
    """
    yield ".".join(name)
    for n_dropped in range(1, len(name)):
        yield ".".join(("*", *name[n_dropped:]))


def is_wildcard(host: str) -> bool:
    """It stands for many names."""
    return host.startswith("*.")


def _expanded(name: Labels, view: View) -> Iterable[Labels]:
    """The full Kubernetes names that `name` may be short for."""
    in_cluster, in_svc = (*name, *view.domain), (*name, _SVC, *view.domain)
    in_namespace = (*name, view.namespace, _SVC, *view.domain)
    match len(name), name[-1] == _SVC:
        case 1, _:
            return (in_namespace,)
        case 2, _:
            return (in_svc, in_namespace)
        case 3, True:
            return (in_cluster, in_svc)
        case 3, False:
            return (in_svc,)
        case 4, True:
            return (in_cluster,)
    return ()
