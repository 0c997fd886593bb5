# SPDX-License-Identifier: Apache-2.0
"""The stub of the extension tells the truth, and both engines satisfy the contract."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING

import pytest

from tests.architecture import c_source
from ztunnel_py.core import _core
from ztunnel_py.dataplane.abc import DataPlane
from ztunnel_py.dataplane.native import NativeEngine
from ztunnel_py.reference.engine import ReferenceEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

STUB = ast.parse((c_source.CORE / "_core.pyi").read_text())
ENGINES: tuple[type[DataPlane], ...] = (NativeEngine, ReferenceEngine)  # mypy checks the types


def stub_functions() -> Iterator[ast.FunctionDef]:
    """Methods and properties of `Core`, as the stub has them."""
    (core,) = (node for node in STUB.body if isinstance(node, ast.ClassDef))
    yield from (node for node in core.body if isinstance(node, ast.FunctionDef))


def is_property(function: ast.FunctionDef) -> bool:
    """Decorated as one."""
    return any(ast.unparse(one) == "property" for one in function.decorator_list)


def test_stub_names_what_the_module_has() -> None:
    named = {
        node.target.id
        for node in STUB.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }

    assert {name for name in vars(_core) if not name.startswith("_")} == named | {"Core"}


def test_stub_names_the_methods_that_there_are() -> None:
    real = {name for name in vars(_core.Core) if not name.startswith("__")}

    assert {one.name for one in stub_functions()} - {"__new__"} == real


@pytest.mark.parametrize(
    "function",
    [one for one in stub_functions() if not is_property(one) and one.name != "__new__"],
    ids=lambda function: function.name,
)
def test_stub_has_the_parameters_of_the_method(function: ast.FunctionDef) -> None:
    real = inspect.signature(getattr(_core.Core, function.name))
    stub = [argument.arg for argument in [*function.args.posonlyargs, *function.args.args]]

    assert list(real.parameters) == stub
    assert {one.kind for one in real.parameters.values()} == {inspect.Parameter.POSITIONAL_ONLY}


@pytest.mark.parametrize("name", [name for name in vars(DataPlane) if not name.startswith("_")])
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_has_the_calls_of_the_contract(engine: type[DataPlane], name: str) -> None:
    wanted, given = getattr(DataPlane, name), getattr(engine, name)

    if not isinstance(wanted, property):
        assert inspect.signature(given) == inspect.signature(wanted)
    assert isinstance(given, property) == isinstance(wanted, property)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_names_itself(engine: type[DataPlane]) -> None:
    assert engine.__impl__ in ("native", "reference")
