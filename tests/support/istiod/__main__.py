# SPDX-License-Identifier: Apache-2.0
"""Serves a local state file as istiod would: discovery, and certificates for anybody.

Writes the roots of both to DIRECTORY/root-cert.pem and prints the address once it listens. Each
line of its input has it read the file again, and tell its clients what has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.support.authority import Authority
from tests.support.istio_ca import IstioCa
from tests.support.istiod.mesh import Mesh
from tests.support.istiod.server import Istiod


async def main(given: argparse.Namespace) -> None:
    """Serves until it is ended."""
    path, directory = given.mesh, given.directory
    mesh, authority = read(path), Authority()
    ca = IstioCa(authority, tokens=given.token and (given.token,), shared=None)
    istiod = Istiod(serve=mesh.serve, services=[ca.add_to], authority=authority)
    istiod.host, istiod.port, istiod.names = given.host, given.port, (given.name,)
    async with istiod:
        (directory / "root-cert.pem").write_bytes(authority.roots_pem)
        print(istiod.address, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            mesh.become(read(path))
        await asyncio.Event().wait()


def read(path: Path) -> Mesh:
    """The mesh of a local state file."""
    return Mesh.of_yaml(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.support.istiod", description=__doc__)
    parser.add_argument("mesh", type=Path, metavar="MESH", help="local state file")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--host", default="127.0.0.1", help="address; its name is localhost")
    parser.add_argument("--port", type=int, default=0, help="any if left out")
    parser.add_argument("--name", default="localhost", help="that its certificate is valid for")
    parser.add_argument("--token", help="that clients have to show; none if left out")
    asyncio.run(main(parser.parse_args()))
