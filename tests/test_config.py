# SPDX-License-Identifier: Apache-2.0
"""Settings from environment, ProxyConfig and mesh file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ztunnel_py.config import Config, load, refuse_unbuilt
from ztunnel_py.config_doc import markdown
from ztunnel_py.config_settings import SETTINGS
from ztunnel_py.config_values import Bind
from ztunnel_py.dataplane.abc import ListenAddress, Role
from ztunnel_py.errors import ConfigError, StartError

_DEDICATED = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "shop/cart-1/cart"}
_RUNNABLE = {**_DEDICATED, "XDS_ADDRESS": "", "FAKE_CA": "true"}
_NOT_FROM_A_VARIABLE = {"has_ipv6_loopback", "stats", "readiness", "warnings"}


def _load(cwd: Path, environ: dict[str, str] | None = None, cpus: int | None = None) -> Config:
    return load({} if environ is None else environ, cwd, cpus=cpus)


def _mesh_file(cwd: Path, text: str) -> None:
    path = cwd / "etc/istio/config/mesh"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def _refusal(cwd: Path, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(cwd, environ)
    return str(caught.value)


# --- documentation


def test_documentation_equals_the_code() -> None:
    page = Path(__file__).parents[1] / "docs" / "configuration.md"

    assert page.read_text() == markdown()


def test_every_field_names_the_variables_it_comes_from() -> None:
    fields = {member.name for member in dataclasses.fields(Config)}

    assert {setting.field for setting in SETTINGS} == fields - _NOT_FROM_A_VARIABLE


def test_every_variable_has_a_unit_and_a_meaning() -> None:
    assert all(setting.kind.unit and setting.meaning for setting in SETTINGS)


# --- values


@pytest.mark.spec("ops-80")
@pytest.mark.parametrize("text", ["1", "True", "", "yes"])
def test_boolean_is_true_or_false_and_the_error_names_the_variable(
    tmp_path: Path, text: str
) -> None:
    assert f"ENABLE_PROXY={text!r}" in _refusal(tmp_path, {"ENABLE_PROXY": text})
    assert issubclass(ConfigError, StartError)  # which ends the program with status 1


@pytest.mark.parametrize("text", ["1", "TRUE", "yes"])
def test_tls12_is_on_for_exactly_true_and_never_an_error(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, {"TLS12_ENABLED": text}).tls12 is False
    assert _load(tmp_path, {"TLS12_ENABLED": "true"}).tls12 is True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1m30s", 90),
        ("3m + 29ms", 180.029),
        ("1m*10", 600),
        ("1m*10ms", 0.6),
        ("7", 7),
        ("1h 2min", 3720),
        ("5us", 5e-6),
        ("5\N{MICRO SIGN}s", 5e-6),
        ("2 weeks", 1_209_600),
    ],
)
def test_duration_is_a_sum_or_product_with_units(tmp_path: Path, text: str, seconds: float) -> None:
    assert _load(tmp_path, {"SECRET_TTL": text}).secret_ttl_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1.5s", "1m+", "1m+2*3", "5 parsecs", "-1s", "999999y"])
def test_malformed_duration_is_refused(tmp_path: Path, text: str) -> None:
    assert "SECRET_TTL" in _refusal(tmp_path, {"SECRET_TTL": text})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HTTP2_FRAME_SIZE", "16383"),
        ("HTTP2_FRAME_SIZE", "16777216"),
        ("HTTP2_STREAM_WINDOW_SIZE", "2147483648"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "2147483648"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "65536"),
        ("PACKET_MARK", "4294967296"),
        ("PACKET_MARK", "0x539"),
        ("KEEPALIVE_RETRIES", "1_0"),
        ("KEEPALIVE_RETRIES", "\N{ARABIC-INDIC DIGIT ONE}"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "-1"),
        ("ZTUNNEL_CPU_LIMIT", "500m"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "0"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "inf"),
        ("ZTUNNEL_WORKER_THREADS", "0%"),
        ("ZTUNNEL_WORKER_THREADS", "101%"),
        ("PROXY_MODE", "sidecar"),
        ("ZTUNNEL_DATAPLANE", "fast"),
        ("ISTIO_META_DNS_PROXY_ADDR", "15053"),
        ("XDS_ADDRESS", "host:port"),
        ("CA_ADDRESS", "a host:15012"),
        ("RUST_LOG", "a=b=c"),
        ("CA_HEADER_KEY-BIN", "x"),
    ],
)
def test_value_out_of_its_range_is_refused_by_name(
    tmp_path: Path, variable: str, text: str
) -> None:
    assert variable.removeprefix("ISTIO_META_") in _refusal(tmp_path, {variable: text})


def test_variable_that_is_not_utf8_counts_as_unset(tmp_path: Path) -> None:
    assert _load(tmp_path, {"ENABLE_PROXY": "\udcff"}).proxy is True


def test_without_variables_defaults_are_those_of_ztunnel(tmp_path: Path) -> None:
    config = _load(tmp_path)

    assert config.packet_mark == 1337
    assert config.xds_address == config.ca_address == "https://localhost:15012"
    assert (config.admin, config.readiness.port) == (Bind("localhost", 15000), 15021)
    assert (config.log_filter, config.is_log_json, config.cluster_id) == (
        "info",
        False,
        "Kubernetes",
    )


def test_in_a_cluster_istiod_has_its_service_name(tmp_path: Path) -> None:
    config = _load(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})

    assert config.xds_address == config.ca_address == "https://istiod.istio-system.svc:15012"


@pytest.mark.spec("ops-82")
def test_control_plane_address_without_scheme_is_https(tmp_path: Path) -> None:
    assert _load(tmp_path, {"XDS_ADDRESS": "host:15012"}).xds_address == "https://host:15012"


def test_empty_control_plane_address_means_none(tmp_path: Path) -> None:
    assert _load(tmp_path, {"XDS_ADDRESS": ""}).xds_address is None


def test_dedicated_mode_needs_a_workload_of_three_parts(tmp_path: Path) -> None:
    dedicated = {"PROXY_MODE": "dedicated"}

    assert _load(tmp_path, _DEDICATED).workload == ("shop", "cart-1", "cart")
    assert "PROXY_WORKLOAD_INFO" in _refusal(tmp_path, dedicated)
    assert "PROXY_WORKLOAD_INFO" in _refusal(tmp_path, {**dedicated, "PROXY_WORKLOAD_INFO": "a/b"})


def test_packets_are_marked_in_dedicated_mode_only_if_asked(tmp_path: Path) -> None:
    assert _load(tmp_path, _DEDICATED).packet_mark is None
    assert _load(tmp_path, {**_DEDICATED, "PACKET_MARK": "7"}).packet_mark == 7


@pytest.mark.spec("ops-85")
def test_istio_meta_cluster_id_wins(tmp_path: Path) -> None:
    config = _load(tmp_path, {"ISTIO_META_CLUSTER_ID": "a", "CLUSTER_ID": "b"})

    assert config.cluster_id == "a"


@pytest.mark.parametrize(
    ("variable", "text", "seconds"),
    [
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30", 25),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "11", 6),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "10", 9),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "2", 1),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "1", 1),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "0", 1),
        ("CONNECTION_TERMINATION_DEADLINE", "500ms", 0.5),
        ("NODE_NAME", "neither", 5),
    ],
)
@pytest.mark.spec("dataplane-106", "ops-88")
def test_drain_deadline_follows_the_grace_period(
    tmp_path: Path, variable: str, text: str, seconds: float
) -> None:
    assert _load(tmp_path, {variable: text}).drain_deadline_s == seconds


@pytest.mark.parametrize(
    ("environ", "workers"),
    [
        ({}, 8),
        ({"ZTUNNEL_RESOURCE_CPU_REQUEST": "10"}, 10),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "1"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "500m", "ZTUNNEL_RESOURCE_CPU_REQUEST": "1.5"}, 2),
        ({"ZTUNNEL_CPU_LIMIT": "4"}, 2),
        ({"PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 3}"}, 3),
        ({"PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 0}"}, 32),
    ],
)
@pytest.mark.spec("ops-89")
def test_workers_of_a_machine_with_32_cpus(
    tmp_path: Path, environ: dict[str, str], workers: int
) -> None:
    assert _load(tmp_path, environ, cpus=32).workers == workers


@pytest.mark.parametrize(("text", "workers"), [("30%", 5), ("0", 16), ("3", 3), ("0.1%", 1)])
@pytest.mark.spec("ops-90")
def test_worker_threads_are_a_number_or_a_share(tmp_path: Path, text: str, workers: int) -> None:
    environ = {
        "ZTUNNEL_WORKER_THREADS": text,
        "PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 9}",
    }

    assert _load(tmp_path, environ, cpus=16).workers == workers


# --- ProxyConfig and mesh file


@pytest.mark.spec("ops-84")
def test_mesh_file_and_proxy_config_both_apply(tmp_path: Path) -> None:
    _mesh_file(
        tmp_path,
        "rootNamespace: ignored\n"
        "defaultConfig: {statsPort: 15888, proxyAdminPort: 15099, proxyMetadata: {A: a, B: b}}\n",
    )

    config = _load(
        tmp_path, {"PROXY_CONFIG": '{"proxyAdminPort": 15999, "proxyMetadata": {"B": "on"}}'}
    )

    assert (config.stats.port, config.admin.port) == (15888, 15999)
    assert config.metadata == {"A": "a", "B": "on"}


def test_metadata_loses_its_prefix_and_the_environment_wins(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        {
            "PROXY_CONFIG": "{proxyMetadata: {ISTIO_META_A: x, ISTIO_META_B: b, C: c}}",
            "ISTIO_META_A": "a",
        },
    )

    assert config.metadata == {"A": "a", "B": "b", "C": "c"}


def test_discovery_address_counts_when_the_variable_is_unset(tmp_path: Path) -> None:
    proxy_config = "{proxyMetadata: {}, discoveryAddress: 'istiod-rev:15012'}"

    config = _load(tmp_path, {"PROXY_CONFIG": proxy_config})

    assert config.xds_address == "https://istiod-rev:15012"


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_empty_proxy_config_is_none(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, {"PROXY_CONFIG": text}).metadata == {}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{statsPort: 15888}", marks=pytest.mark.spec("ops-83")),
        "{proxyMetadata: {A: 1}}",
        "{proxyMetadata: {}, statsPort: 65536}",
        "{proxyMetadata: {}, statsPort: '1'}",
        "{proxyMetadata: {}, discoveryAddress: 1}",
        "[]",
        "{",
    ],
)
def test_malformed_proxy_config_is_refused(tmp_path: Path, text: str) -> None:
    refusal = _refusal(tmp_path, {"PROXY_CONFIG": text})

    assert refusal.startswith("failed parsing proxy config env: PROXY_CONFIG: ")


def test_malformed_mesh_file_is_refused(tmp_path: Path) -> None:
    _mesh_file(tmp_path, "defaultConfig: {statsPort: 1}")

    assert _refusal(tmp_path, {}).startswith("failed parsing mesh config file ")


def test_json_metadata_is_decoded_and_bad_json_skipped_with_a_warning(tmp_path: Path) -> None:
    huge = "9" * 400  # larger than what the control plane's messages can carry
    bad = {"B": "{", "C": huge, "D": f'{{"a": [{huge}]}}', "E": "NaN"}
    environ = {f"ISTIO_METAJSON_{name}": text for name, text in bad.items()}

    config = _load(tmp_path, {"ISTIO_METAJSON_A": '{"x": 1}', **environ})

    assert config.metadata_json == {"A": {"x": 1}}
    for variable in environ:
        assert any(variable in warning for warning in config.warnings)


# --- contradictions


@pytest.mark.spec("ops-92")
def test_two_sources_of_local_state_are_refused(tmp_path: Path) -> None:
    refusal = _refusal(tmp_path, {"LOCAL_XDS": "{}", "LOCAL_XDS_PATH": "/x"})

    assert "LOCAL_XDS" in refusal
    assert "LOCAL_XDS_PATH" in refusal


@pytest.mark.spec("ops-87", "state-30")
def test_on_demand_discovery_with_dns_is_refused(tmp_path: Path) -> None:
    assert "XDS_ON_DEMAND" in _refusal(tmp_path, {"XDS_ON_DEMAND": "true"})


def test_nothing_to_run_is_refused(tmp_path: Path) -> None:
    environ = {"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "false"}

    assert "ENABLE_PROXY" in _refusal(tmp_path, environ)


def test_no_certificate_authority_is_refused(tmp_path: Path) -> None:
    assert "FAKE_CA=true" in _refusal(tmp_path, {"CA_ADDRESS": ""})
    assert _load(tmp_path, {"CA_ADDRESS": "", "FAKE_CA": "true"}).ca_address is None


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"ZTUNNEL_IDENTITY_SOURCE": "vault"}, "istiod, files, spiffe, spire"),
        ({"ZTUNNEL_IDENTITY_SOURCE": "files", "ZTUNNEL_KEY_FILE": "/k"}, "ZTUNNEL_ROOTS_FILE"),
        ({"ZTUNNEL_IDENTITY_SOURCE": "spiffe"}, "SPIFFE_ENDPOINT_SOCKET"),
        (
            {"ZTUNNEL_IDENTITY_SOURCE": "spiffe", "SPIFFE_ENDPOINT_SOCKET": "tcp://127.0.0.1:1"},
            "unix:///path",
        ),
        ({"ZTUNNEL_IDENTITY_SOURCE": "spire", "FAKE_CA": "true"}, "FAKE_CA=true contradicts"),
    ],
)
def test_source_of_identities_needs_what_belongs_to_it(
    tmp_path: Path, environ: dict[str, str], named: str
) -> None:
    assert named in _refusal(tmp_path, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {"ZTUNNEL_IDENTITY_SOURCE": "spiffe", "SPIFFE_ENDPOINT_SOCKET": "unix:///a"},
        {
            "ZTUNNEL_IDENTITY_SOURCE": "files",
            "ZTUNNEL_CERTIFICATE_FILE": "/c",
            "ZTUNNEL_KEY_FILE": "/k",
            "ZTUNNEL_ROOTS_FILE": "/r",
        },
    ],
)
def test_identity_of_one_workload_is_not_for_a_node(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    assert _load(tmp_path, _DEDICATED | environ).ca_address is None

    error = _refusal(tmp_path, environ | {"PROXY_MODE": "shared"})

    assert "requires PROXY_MODE=dedicated" in error


@pytest.mark.parametrize(
    "environ",
    [
        {"FAKE_CA": "true", "FAKE_CA_ROOT_CERT": "a"},
        {"FAKE_CA": "true", "FAKE_CA_ROOT_KEY": "a"},
        {"FAKE_CA_ROOT_CERT": "a", "FAKE_CA_ROOT_KEY": "b"},
    ],
)
def test_fake_root_is_certificate_and_key_of_the_fake_ca(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    assert "FAKE_CA" in _refusal(tmp_path, environ)


# --- secrets


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    config = _load(
        tmp_path, {"XDS_HEADER_A": "hush1", "CA_HEADER_B": "hush2", "AUTH_TOKEN": "hush3"}
    )

    assert "hush" not in repr(config)
    assert [(name, secret.value) for name, secret in config.ca_headers] == [("b", "hush2")]


def test_bad_header_value_is_not_printed_either(tmp_path: Path) -> None:
    refusal = _refusal(tmp_path, {"CA_HEADER_B": "hush\N{SNOWMAN}"})

    assert "CA_HEADER_B" in refusal
    assert "hush" not in refusal


def test_token_file_is_used_where_it_exists(tmp_path: Path) -> None:
    token = tmp_path / "var/run/secrets/tokens/istio-token"
    token.parent.mkdir(parents=True)
    token.write_text("x")

    secret = _load(tmp_path).auth_token

    assert secret is not None
    assert secret.value == "./var/run/secrets/tokens/istio-token"


# --- what the rest is told


def test_listeners_are_bound_in_order_on_the_wildcard(tmp_path: Path) -> None:
    assert _load(tmp_path).listeners() == (
        ListenAddress(Role.INBOUND, "::", 15008),
        ListenAddress(Role.PASSTHROUGH, "::", 15006),
        ListenAddress(Role.OUTBOUND, "::", 15001),
    )


def test_without_ipv6_everything_is_bound_on_ipv4(tmp_path: Path) -> None:
    config = _load(tmp_path, {"IPV6_ENABLED": "false"})

    assert {listener.address for listener in config.listeners()} == {"0.0.0.0"}
    assert config.stats == ("0.0.0.0", 15020)
    assert config.admin.addresses(has_ipv6_loopback=config.has_ipv6_loopback) == (
        ("127.0.0.1", 15000),
    )


def test_socks5_adds_a_loopback_listener_and_an_illegal_port(tmp_path: Path) -> None:
    config = _load(tmp_path, {"UNSTABLE_ENABLE_SOCKS5": "true"})

    assert config.listeners()[-1] == ListenAddress(Role.SOCKS5, "127.0.0.1", 15080)
    assert config.illegal_ports() == {15008, 15006, 15001, 15080}


def test_engine_is_told_what_was_set(tmp_path: Path) -> None:
    settings = _load(
        tmp_path,
        {
            "HTTP2_STREAM_WINDOW_SIZE": "70000",
            "POOL_UNUSED_RELEASE_TIMEOUT": "1m",
            "ENABLE_ORIG_SRC": "false",
            "KEEPALIVE_TIME": "1500ms",
            "PACKET_MARK": "9",
            "ZTUNNEL_WORKER_THREADS": "3",
        },
    ).engine_settings()

    assert (settings.stream_window, settings.pool_idle_s, settings.orig_src) == (70_000, 60, False)
    assert (settings.sockets.keepalive_time_s, settings.sockets.mark) == (2, 9)
    assert (settings.workers, settings.flows_per_workload) == (3, 4096)


def test_engine_is_native_unless_another_is_asked_for(tmp_path: Path) -> None:
    assert _load(tmp_path).dataplane == "native"
    assert _load(tmp_path, {"ZTUNNEL_DATAPLANE": "reference"}).dataplane == "reference"


# --- what this version cannot do


def test_dedicated_mode_with_local_state_and_fake_ca_is_built(tmp_path: Path) -> None:
    refuse_unbuilt(_load(tmp_path, _RUNNABLE))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ENABLE_PROXY": "false"}, "ENABLE_PROXY"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    config = _load(tmp_path, {**_RUNNABLE, **changes})

    with pytest.raises(ConfigError) as caught:
        refuse_unbuilt(config)

    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "is_on"), [({}, True), ({"DNS": "false"}, False), ({"DNS": "TRUE"}, True)]
)
def test_dns_proxy_is_on_unless_it_is_switched_off(
    tmp_path: Path, environ: dict[str, str], *, is_on: bool
) -> None:
    config = _load(tmp_path, {f"ISTIO_META_{key}_CAPTURE": text for key, text in environ.items()})

    assert config.dns_proxy is is_on
    assert config.warnings == ()


def test_empty_revocation_path_is_none(tmp_path: Path) -> None:
    assert _load(tmp_path, {"CRL_PATH": ""}).crl_path is None
