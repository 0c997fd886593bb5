# SPDX-License-Identifier: Apache-2.0
"""Builds the parts in order: the table of contents of the program."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ztunnel_py import __version__, lifecycle
from ztunnel_py.admin.dump import config_dump
from ztunnel_py.admin.dump_pods import dump_pods
from ztunnel_py.admin.readiness import Readiness, readiness_server
from ztunnel_py.admin.server import admin_server
from ztunnel_py.admin.stats import stats_server
from ztunnel_py.clock import LoopClock
from ztunnel_py.config_model import ProxyMode
from ztunnel_py.dataplane import epochs, open_engine
from ztunnel_py.dataplane.abc import Role, WorkloadSpec
from ztunnel_py.dataplane.certificates import Certificates
from ztunnel_py.dataplane.prefetch import Prefetch
from ztunnel_py.dataplane.records import Records
from ztunnel_py.dataplane.revalidate import Revalidate
from ztunnel_py.dataplane.revocations import Revocations
from ztunnel_py.dataplane.upcalls import Upcalls
from ztunnel_py.decide.settings import Settings
from ztunnel_py.dns.on_demand import OnDemandDns
from ztunnel_py.errors import StartError
from ztunnel_py.identity import source
from ztunnel_py.identity.manager import SecretManager
from ztunnel_py.inpod.client import Client as AgentClient
from ztunnel_py.inpod.manager import Manager as PodManager
from ztunnel_py.inpod.migration import handing_over
from ztunnel_py.inpod.pods import PodProxies
from ztunnel_py.rpc.server import Server
from ztunnel_py.state.store import Store
from ztunnel_py.state.workload import WorkloadInfo
from ztunnel_py.tasks import Tasks
from ztunnel_py.telemetry import certificates as certificate_metrics
from ztunnel_py.telemetry import exposition, metrics, queries, usage
from ztunnel_py.telemetry import log as logs
from ztunnel_py.telemetry.access_log import AccessLog, wants_opened
from ztunnel_py.telemetry.log import Display, logger
from ztunnel_py.version import BuildInfo
from ztunnel_py.xds import local
from ztunnel_py.xds.client import Client
from ztunnel_py.xds.counts import Counts
from ztunnel_py.xds.ingest import Ingest
from ztunnel_py.xds.node import node
from ztunnel_py.xds.session import Session
from ztunnel_py.xds.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ztunnel_py.admin.dump import Json
    from ztunnel_py.clock import Clock
    from ztunnel_py.config import Config
    from ztunnel_py.config_values import Bind
    from ztunnel_py.dataplane.abc import DataPlane, ListenAddress
    from ztunnel_py.dns.resolver import Resolver
    from ztunnel_py.dns.servers import Servers as NameServers
    from ztunnel_py.telemetry.otel import Exports

POD_MANAGER = "workload proxy manager"
DNS = "dns proxy"
ITSELF = "ztunnel"
"""The engine's name for the proxy's own pod."""

log = logger("ztunnel::app")


async def serve(config: Config) -> None:
    """Runs the proxy until it is told to end.

    Raises:
        StartError: it cannot run.
    """
    log.info(f"version: {BuildInfo.running(config.istio_version)}")
    for warning in config.warnings:
        log.warn(warning)
    lifecycle.raise_file_limit()
    is_shared = config.mode is ProxyMode.SHARED
    if is_shared:
        lifecycle.check_namespaces(config.packet_mark)
    shutdown = lifecycle.Shutdown(logs.close)
    tasks, clock = Tasks(shutdown.fail), LoopClock()
    readiness = Readiness()
    readiness.register("proxy")
    readiness.register("state manager")
    if config.dns_proxy:
        readiness.register(DNS)
    if is_shared:
        readiness.register(POD_MANAGER)

    ready = readiness_server(readiness, _addresses(config, config.readiness))
    await ready.open()
    store = Store(config.node_name or "")
    static = local.load(str(config.local_xds_path or ""), config.local_xds or "")
    await Slices(store).apply(static.updates)
    heard = Counts()
    discovery = _discovery(config, store, heard, clock, tasks)
    authority = source.chosen(config, clock, tasks)
    manager = SecretManager(authority, clock, tasks)
    authority.start(manager.renew)
    if is_shared:
        tasks.essential(
            "prefetching certificates", Prefetch(store, manager, config.node_name).run()
        )

    plane = open_engine(config.dataplane, clock)
    epochs.follow(store, plane)
    certificates = Certificates(plane, manager)
    names = OnDemandDns(partial(_resolver, config))
    on_demand = discovery.on_demand if discovery is not None and config.xds_on_demand else None
    upcalls = Upcalls(plane, store, _settings(config), certificates, names, clock, tasks, on_demand)
    revalidate = Revalidate(plane, store, upcalls, tasks)
    exports, access_log = _exports(config), AccessLog()
    records = Records(plane, exports.around(access_log) if exports is not None else access_log)

    dns = _dns(config, store, clock) if config.dns_proxy else None
    pods = PodManager(
        PodProxies(plane, upcalls, config.listeners(), dns),
        clock,
        lambda is_settled: readiness.set(POD_MANAGER, is_done=is_settled),
    )

    def dump() -> Json:
        shown = dump_pods(pods.statuses(), plane.connections()) if is_shared else None
        return config_dump(config, store, manager.statuses(), static.updates, shown)

    admin = admin_server(
        dump,
        lambda: shutdown.request("POST /quitquitquit"),
        _addresses(config, config.admin),
        plane.connections,
        plane.tunnels,
        lambda src, dst: partial(_why, store.copy(), _settings(config), src, dst),
        lambda: plane.report_opened(wants_opened()),
    )
    await admin.open()

    async def metric_lines() -> Iterator[str | None]:
        used = await asyncio.to_thread(usage.read)
        is_connected = None if discovery is None else discovery.is_connected
        return exposition.lines(
            [
                *usage.families(used),
                metrics.build(config.istio_version),
                *metrics.discovery(heard, is_connected),
                *metrics.traffic(plane),
                metrics.lookups(names.counts),
                *(queries.families(dns.counts) if dns is not None else ()),
                *(metrics.pods(pods) if is_shared else ()),
                metrics.lost_lines(logs.lost()),
                *([metrics.exports(exports.counts)] if exports is not None else ()),
                *certificate_metrics.families(manager.statuses(), manager.now()),
            ]
        )

    stats = stats_server(metric_lines, _addresses(config, config.stats))
    plane.start(config.engine_settings())
    served = _served(config)
    if served is not None:
        _open_listeners(served, plane, upcalls, None if is_shared else dns)
    if config.crl_path is not None:
        await Revocations(plane, config.crl_path, clock, tasks).start()
    await stats.open()
    agent = AgentClient(config.inpod_uds, pods, clock)
    shutdown.install()
    if discovery is not None:
        tasks.essential("discovery", discovery.run())
    if discovery is None or not await shutdown.comes_before(discovery.synced):
        gc.freeze()  # what was loaded stays: no collection needs to walk it
        readiness.done("state manager")
        upcalls.start()
        revalidate.start()
        records.start()
        plane.report_opened(wants_opened())
        if is_shared:
            tasks.essential("the agent's client", agent.run(shutdown.fail))
        if served is not None:
            plane.workload_serve(served.id)
        readiness.done("proxy")
        if dns is not None:
            if served is not None and not is_shared:
                dns.serve(served.id)
            readiness.done(DNS)

    await shutdown.wanted()
    agent.stop()
    await ready.close()
    drained_by = clock.now() + config.drain_deadline_s
    if dns is not None:
        dns.step_aside()
    async with handing_over(pods.namespaces()):
        await lifecycle.drain(plane, clock, config.drain_deadline_s)
    if dns is not None:  # last: who finishes a connection may still have to find somebody
        await dns.drain(max(drained_by - clock.now(), 0.0))
    manager.stop()
    upcalls.stop()
    revalidate.stop()
    records.stop()
    await plane.stop()
    await tasks.stop()
    authority.stop()
    await records.flush()
    if exports is not None:
        await asyncio.to_thread(exports.close)
    await admin.close()
    await stats.close()
    log.info("shutdown complete")


class _Served(NamedTuple):
    """A workload of this proxy's own namespace."""

    id: str
    info: WorkloadInfo
    listeners: tuple[ListenAddress, ...]
    settings: Settings


def _served(config: Config) -> _Served | None:
    """The workload of a dedicated proxy; in shared mode the proxy's own pod, if it is named.

    Of its own pod others may reach the metrics, with the identity that they prove and under its
    policies. Source: spec identity-ops, section D.7.
    """
    settings = _settings(config)
    if config.workload is not None:
        name = config.workload
        info = WorkloadInfo(name.name, name.namespace, name.service_account)
        return _Served("/".join(name), info, config.listeners(), settings)
    pod, namespace, account = config.pod_name, config.pod_namespace, config.service_account
    if not (pod and namespace and account):
        return None
    inbound = tuple(one for one in config.listeners() if one.role is Role.INBOUND)
    own = dataclasses.replace(settings, keep_source=False)
    return _Served(ITSELF, WorkloadInfo(pod, namespace, account), inbound, own)


def _open_listeners(
    served: _Served, plane: DataPlane, upcalls: Upcalls, dns: NameServers | None
) -> None:
    """Binds the proxy's ports; connections and queries wait in the kernel until they are served."""
    try:
        resolve = None if dns is None else dns.open(served.id, served.info)
    except OSError as error:
        raise StartError(error.strerror) from error
    upcalls.serve(served.id, served.info, served.settings)
    try:
        bound = plane.workload_add(WorkloadSpec(served.id, served.listeners, resolve=resolve))
    except OSError as error:
        raise StartError(f"failed to bind to address {error.filename}: {error.strerror}") from error
    for role, address in bound.items():
        log.info(
            "listener established",
            {
                "address": Display(str(address)),
                "component": role.value,
                "transparent": plane.is_transparent(served.id, role),
            },
        )


def _discovery(
    config: Config, store: Store, heard: Counts, clock: Clock, tasks: Tasks
) -> Client | None:
    """The control plane, if there is one; what it says comes on top of the local state."""
    if config.xds_address is None:
        return None
    session = Session(node(config), on_demand=config.xds_on_demand)
    ingest = Ingest(store, heard)
    return Client(Server.discovery(config).channel, session, ingest, heard, clock, tasks)


def _settings(config: Config) -> Settings:
    return Settings(
        network=config.network,
        illegal_ports=config.illegal_ports(),
        response_baggage=config.response_baggage,
        localhost_app_tunnel=config.localhost_app_tunnel,
        policy_log_level="info" if config.authz_info_logging else "debug",
    )


def _exports(config: Config) -> Exports | None:
    """To OpenTelemetry, if the environment asks for it."""
    if not config.otel:
        return None
    try:
        from ztunnel_py.telemetry.otel import Exports  # which few have installed
    except ImportError as error:
        raise StartError(
            f"OTEL_* variables ask for exports to OpenTelemetry, but {error.name} is missing: "
            "install ztunnel-py[otel], or set OTEL_SDK_DISABLED=true"
        ) from error
    who = {"service.name": "ztunnel", "service.version": str(__version__)}
    optional = {"k8s.node.name": config.node_name, "k8s.pod.name": config.pod_name}
    return Exports(config.otel, who | {name: text for name, text in optional.items() if text})


def _resolver(config: Config) -> Resolver:
    from ztunnel_py.dns.resolver import Resolver  # which few meshes need

    return Resolver(ipv6=config.ipv6, resolv_conf=config.resolv_conf)


def _dns(config: Config, store: Store, clock: Clock) -> NameServers:
    from ztunnel_py.dns import answer, names, servers  # which not everybody captures

    settings = servers.Settings(
        addresses=lambda has_ipv6: config.dns.addresses(has_ipv6_loopback=has_ipv6),
        has_ipv6_loopback=config.has_ipv6_loopback,
        answers=answer.Settings(
            names.parse(config.cluster_domain), config.ipv6, config.preferred_service_namespace
        ),
        resolv_conf=config.resolv_conf,
        mark=config.packet_mark,
        port_reuse=config.inpod_port_reuse,
    )
    return servers.Servers(store, settings, clock)


def _why(store: Store, settings: Settings, src: str, dst: str) -> dict[str, object]:
    from ztunnel_py.decide.explain import explain  # which no connection needs

    return explain(store, settings, src, dst).tree()


def _addresses(config: Config, bind: Bind) -> tuple[tuple[str, int], ...]:
    return bind.addresses(has_ipv6_loopback=config.has_ipv6_loopback)
