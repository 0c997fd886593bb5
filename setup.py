# SPDX-License-Identifier: Apache-2.0
"""Builds the C core as the extension `ztunnel_py.core._core`; all else is in pyproject.toml.

`ZTUNNEL_BUILD` picks release (the default), debug, asan or tsan. Only what changed is compiled.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from ztunnel_py.core.reasons import table  # noqa: E402 - the table is part of what is built

PROTO = Path("ztunnel_py/proto")
CORE = Path("ztunnel_py/core")
BUILD = Path("build/core")
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Werror",
]
FLAVOURS = {
    "release": ["-O3", "-g", "-fno-plt", "-DNDEBUG"],
    "debug": ["-O0", "-g3", "-UNDEBUG"],
    "asan": ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"],
    "tsan": ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}
FLAVOUR = os.environ.get("ZTUNNEL_BUILD", "release")
if FLAVOUR not in FLAVOURS:
    sys.exit(f"ZTUNNEL_BUILD={FLAVOUR}: expected one of {', '.join(FLAVOURS)}")


class BuildCore(build_ext):  # type: ignore[misc] # setuptools has no types for it
    """Compiles what is older than its source or any header, a thread per CPU."""

    def finalize_options(self) -> None:
        """Keeps objects from one run to the next, those of each flavour apart."""
        super().finalize_options()
        self.build_temp = str(BUILD / FLAVOUR)

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links."""
        write_reasons()

        def compile_one(source: str) -> str:
            found = Path(self.build_temp, source).with_suffix(".o")
            if newer_group([source, *ext.depends], str(found)):
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=ext.extra_compile_args,
                )
            return str(found)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        library = Path(self.get_ext_fullpath(ext.name))
        library.unlink(missing_ok=True)  # objects of another flavour may be older
        self.compiler.link_shared_object(
            objects,
            str(library),
            libraries=ext.libraries,
            extra_postargs=ext.extra_link_args,
        )


def write_reasons() -> None:
    """Writes the table of endings, if it has changed."""
    path, text = BUILD / "reason.def", table()
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_messages() -> None:
    """Writes the modules of protobuf messages that are older than their definition."""
    for source in sorted(PROTO.glob("*.proto")):
        if not newer_group([str(source)], str(source.with_name(f"{source.stem}_pb2.py"))):
            continue
        from grpc_tools import protoc

        known = Path(protoc.__file__).with_name("_proto")
        outputs = [f"--python_out={PROTO}", f"--pyi_out={PROTO}"]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{known}", *outputs, str(source)]) != 0:
            sys.exit(f"{source} cannot be compiled")


def core() -> Extension:
    """The extension."""
    write_reasons()
    write_messages()
    headers = [str(path) for path in sorted([*CORE.glob("*.h"), *CORE.glob("*.def")])]
    sanitizers = [flag for flag in FLAVOURS[FLAVOUR] if flag.startswith("-fsanitize")]
    return Extension(
        "ztunnel_py.core._core",
        sources=[str(path) for path in sorted(CORE.glob("*.c"))],
        depends=[*headers, str(BUILD / "reason.def"), "setup.py"],
        include_dirs=[str(CORE), str(BUILD)],
        libraries=["ssl", "crypto", "nghttp2", "pthread"],
        extra_compile_args=[
            "-std=c11",
            "-D_GNU_SOURCE",
            "-fvisibility=hidden",
            "-isystem",  # what Python's headers do is not ours to warn about
            sysconfig.get_path("include"),
            *WARNINGS,
            *FLAVOURS[FLAVOUR],
        ],
        extra_link_args=sanitizers,
    )


os.chdir(ROOT)
setup(ext_modules=[core()], cmdclass={"build_ext": BuildCore})
