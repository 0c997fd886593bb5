# SPDX-License-Identifier: Apache-2.0
"""`ztunnel-py workloads`, `services` and `policies`: the mesh as a proxy knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ztunnel_py.cli.source import entries, json_option, reads, text, texts
from ztunnel_py.cli.table import Table, show, show_json

if TYPE_CHECKING:
    from ztunnel_py.cli.source import Json, Source

_namespace = click.option("--namespace", default="", metavar="NAME", help="only of this namespace")


@click.command()
@reads
@_namespace
@click.option("--node", default="", metavar="NAME", help="only on this node")
@click.option("--workload", default="", metavar="TEXT", help="only those whose name contains TEXT")
@json_option
def workloads(source: Source, namespace: str, node: str, workload: str, *, as_json: bool) -> None:
    """Show the workloads of the mesh."""
    dump = source.dump()
    found = [one for one in entries(dump, "workloads") if _is_asked(one, namespace, node, workload)]
    found.sort(key=lambda one: (text(one, "namespace"), text(one, "name"), text(one, "node")))
    if as_json:
        show_json(found)
        return
    names = _service_names(dump)
    head = ["NAMESPACE", "NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL", "STATUS"]
    show(
        Table(
            head,
            [
                [
                    text(one, "namespace"),
                    text(one, "name"),
                    ",".join(texts(one, "workloadIps")) or text(one, "hostname"),
                    text(one, "node"),
                    _waypoint(one, names),
                    text(one, "protocol"),
                    text(one, "status"),
                ]
                for one in found
            ],
        )
    )


@click.command()
@reads
@_namespace
@click.option("--node", default="", metavar="NAME", help="only those with an endpoint there")
@click.option(
    "--workload", default="", metavar="TEXT", help="only those of workloads with such a name"
)
@json_option
def services(source: Source, namespace: str, node: str, workload: str, *, as_json: bool) -> None:
    """Show the services of the mesh."""
    dump = source.dump()
    by_uid = {text(one, "uid"): one for one in entries(dump, "workloads")}

    def is_asked(one: Json) -> bool:
        if namespace and text(one, "namespace") != namespace:
            return False
        behind = (by_uid.get(uid, {}) for uid in _uids(one))
        return not (node or workload) or any(_is_asked(w, "", node, workload) for w in behind)

    found = [one for one in entries(dump, "services") if is_asked(one)]
    found.sort(key=lambda one: (text(one, "namespace"), text(one, "name"), text(one, "hostname")))
    if as_json:
        show_json(found)
        return
    names = _service_names(dump)
    head = ["NAMESPACE", "NAME", "HOSTNAME", "VIP", "WAYPOINT", "ENDPOINTS"]
    show(
        Table(
            head,
            [
                [
                    text(one, "namespace"),
                    text(one, "name"),
                    text(one, "hostname"),
                    ",".join(vip.partition("/")[2] for vip in texts(one, "vips")),
                    _waypoint(one, names),
                    _endpoints(one, by_uid),
                ]
                for one in found
            ],
        )
    )


@click.command()
@reads
@_namespace
@json_option
def policies(source: Source, namespace: str, *, as_json: bool) -> None:
    """Show the authorization policies of the mesh."""
    found = [
        one
        for one in entries(source.dump(), "policies")
        if not namespace or text(one, "namespace") == namespace
    ]
    found.sort(key=lambda one: (text(one, "namespace"), text(one, "name")))
    if as_json:
        show_json(found)
        return
    head = ["NAMESPACE", "NAME", "ACTION", "SCOPE", "RULES", "DRY RUN"]
    show(
        Table(
            head,
            [
                [
                    text(one, "namespace"),
                    text(one, "name"),
                    text(one, "action"),
                    text(one, "scope"),
                    str(len(texts(one, "rules"))),
                    "yes" if one.get("dryRun") is True else "",
                ]
                for one in found
            ],
        )
    )


def _is_asked(one: Json, namespace: str, node: str, name: str) -> bool:
    return (
        (not namespace or text(one, "namespace") == namespace)
        and (not node or text(one, "node") == node)
        and name in text(one, "name")
    )


def _uids(service: Json) -> list[str]:
    return [text(one, "workloadUid") for one in entries(service, "endpoints")]


def _endpoints(service: Json, by_uid: dict[str, Json]) -> str:
    """How many are healthy, of how many."""
    uids = _uids(service)
    n_healthy = sum(text(by_uid.get(uid), "status") == "Healthy" for uid in uids)
    return f"{n_healthy}/{len(uids)}"


def _service_names(dump: Json) -> dict[str, str]:
    """Names by what may refer to a service: namespace/hostname, or network/ip."""
    names = {}
    for one in entries(dump, "services"):
        name = text(one, "name")
        names[f"{text(one, 'namespace')}/{text(one, 'hostname')}"] = name
        names.update(dict.fromkeys(texts(one, "vips"), name))
    return names


def _waypoint(one: Json, names: dict[str, str]) -> str:
    destination = text(one, "waypoint", "destination")
    return names.get(destination, destination)
