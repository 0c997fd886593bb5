# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the arrows of ARCHITECTURE.md, each with its reason."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ztunnel_py"

VOCABULARY = {"errors", "version", "clock", "netns", "reuseport", "stamp", "tasks", "yields"} | {
    "telemetry.log",
    "yaml_tree",
}
"""What everybody may use; it uses only itself."""

ALLOWED: dict[str, tuple[set[str], str]] = {
    "errors": (set(), "the table of endings depends on nothing"),
    "version": (set(), "the version depends on nothing"),
    "clock": (set(), "time depends on nothing"),
    "netns": (set(), "sockets in pods, whoever needs them"),
    "reuseport": (set(), "who shares an address, whoever listens"),
    "stamp": (set(), "files depend on nothing"),
    "tasks": (set(), "tasks only log"),
    "yields": (set(), "the processor, whoever computes for long"),
    "yaml_tree": (set(), "YAML as plain values"),
    "openssl": (set(), "what the library can do, before anybody uses it"),
    "state": ({"identity.spiffe"}, "facts know no one who uses them"),
    "decide": ({"state", "identity.spiffe"}, "a verdict follows from facts alone"),
    "identity": ({"config.model", "proto", "rpc"}, "identities are vouched for whoever uses them"),
    "proto": (set(), "messages, generated"),
    "rpc": ({"config.model", "config.values"}, "calls know settings, not what is said"),
    "xds": (
        {"config.model", "proto", "rpc", "state", "identity.spiffe"},
        "what is heard becomes state",
    ),
    "dns": (
        {"dataplane.abc", "state", "telemetry.filter"},
        "names follow from facts; others are asked for",
    ),
    "inpod": ({"proto", "state.workload", "dataplane.abc"}, "pods become workloads of the engine"),
    "agent": (
        {"proto", "redirection", "state.workload", "agent"},
        "the other end of what inpod hears",
    ),
    "redirection": (set(), "rules of pods, for whoever prepares pods"),
    "core": (set(), "C, and the table it is made from"),
    "dataplane": ({"core", "decide", "state", "identity", "reference"}, "asks and answers"),
    "reference": ({"dataplane", "decide", "state", "identity"}, "an engine sees the contract only"),
    "config": ({"dataplane.abc", "telemetry.filter"}, "settings are values"),
    "lifecycle": ({"dataplane.abc"}, "the end of the program"),
    "telemetry": (
        {"dataplane", "decide", "dns.counts", "state.address", "telemetry"},
        "tells what it is given",
    ),
    "admin": (
        {"config", "dataplane.abc", "inpod", "state", "identity", "telemetry", "xds", "admin"}
        | {"proto"},
        "shows what it is given",
    ),
    "cli": (
        {"agent", "cli", "config.values", "decide", "redirection", "state.store", "xds.local"}
        | {"start"},
        "runs the program from outside; `why` asks decisions about a file, without a program",
    ),
    "app": (
        {"admin", "config", "dataplane", "decide", "identity", "lifecycle", "state", "telemetry"}
        | {"dns", "inpod", "rpc", "xds"},
        "wires everything",
    ),
    "start": ({"app", "config", "openssl", "telemetry"}, "the program, up to its parts"),
    "__main__": ({"cli", "start"}, "the command; the proxy without the libraries of the others"),
}

PURE_WITHOUT = {"asyncio", "socket", "time", "random", "grpc", "os", "threading"}
CORE_IMPORTERS = {"dataplane.native", "dataplane.views"}
"""Who knows the C core: the engine that it is, and the shapes of what comes back."""
SOLE_IMPORTERS = {
    "h2": {"reference", "rpc"},
    "hyperframe": {"reference"},
    "aiohttp": {"admin", "agent"},
    "brotli": {"admin"},
    "zstandard": {"admin"},
    "click": {"cli"},
    "dns": {"dns"},
    "grpclib": {"rpc"},
    "opentelemetry": {"telemetry"},
    "pyroute2": {"redirection"},
    "rich": {"cli"},
}


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`decide.rbac` for ztunnel_py/decide/rbac.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def package_of(name: str) -> str:
    """The first part; all `config_*` modules are one package in several files."""
    first = name.partition(".")[0]
    return "config" if first.startswith("config_") else first


def imports(path: Path) -> Iterator[str]:
    """Names of imported modules, also those for annotations only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.startswith("ztunnel_py"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_imports(path: Path) -> set[str]:
    """First names of modules that are imported when the module runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def is_ours(module: str) -> bool:
    """It names a module or a package of the project, not something inside one."""
    path = ROOT / module.replace(".", "/")
    return module.startswith("ztunnel_py.") and (path.is_dir() or path.with_suffix(".py").is_file())


def covers(allowed: set[str], target: str) -> bool:
    """`target` is one of `allowed`, or inside one."""
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_import_only_along_the_arrows(path: Path) -> None:
    name = name_of(path)
    if not name:
        return
    package = package_of(name)
    allowed, reason = ALLOWED[package]
    targets = {module.removeprefix("ztunnel_py.") for module in imports(path) if is_ours(module)}

    wrong = {
        target
        for target in targets
        if package_of(target) != package
        and not covers(allowed | VOCABULARY, target.replace("config_", "config.", 1))
    }

    assert not wrong, f"{name} imports {sorted(wrong)}, but: {reason}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if package_of(name_of(p)) in ("state", "decide")], ids=name_of
)
def test_facts_and_decisions_do_no_io_and_know_no_clock(path: Path) -> None:
    assert not runtime_imports(path) & PURE_WITHOUT


@pytest.mark.parametrize(("library", "importers"), SOLE_IMPORTERS.items())
def test_a_library_has_few_importers(library: str, importers: set[str]) -> None:
    users = {name_of(path) for path in modules() if library in runtime_imports(path)}

    assert {package_of(name) for name in users} == importers


def test_only_the_native_engine_knows_the_core() -> None:
    users = {
        name
        for path in modules()
        if package_of(name := name_of(path)) != "core"
        if any(module.startswith("ztunnel_py.core") for module in imports(path))
    }

    assert users == CORE_IMPORTERS
