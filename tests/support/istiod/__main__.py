# SPDX-License-Identifier: Apache-2.0
"""Serves a local state file as istiod would: discovery, and certificates for anybody.

Writes the roots of both to DIRECTORY/root-cert.pem and prints the address once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tests.support.authority import Authority
from tests.support.istio_ca import IstioCa
from tests.support.istiod.mesh import Mesh
from tests.support.istiod.server import Istiod


async def main(mesh: Mesh, directory: Path, port: int, *, shared: bool) -> None:
    """Serves until it is ended."""
    authority = Authority()
    ca = IstioCa(authority, tokens=None, shared=shared)
    istiod = Istiod(serve=mesh.serve, services=[ca.add_to], port=port, authority=authority)
    async with istiod:
        (directory / "root-cert.pem").write_bytes(authority.roots_pem)
        print(istiod.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.support.istiod", description=__doc__)
    parser.add_argument("mesh", type=Path, metavar="MESH", help="local state file")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--port", type=int, default=0, help="on loopback; any if left out")
    parser.add_argument("--dedicated", action="store_true", help="clients ask for themselves")
    given = parser.parse_args()
    served = Mesh.of_yaml(given.mesh.read_text(encoding="utf-8"))
    asyncio.run(main(served, given.directory, given.port, shared=not given.dedicated))
