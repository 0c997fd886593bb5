# SPDX-License-Identifier: Apache-2.0
"""Serves a local state file as a control plane: `python -m tests.support.istiod mesh.yaml DIR`.

Writes the roots of its certificate to DIR/root-cert.pem and prints its address once it listens.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.istiod.mesh import Mesh
from tests.support.istiod.server import Istiod


async def main(mesh: Mesh, directory: Path, port: int) -> None:
    """Serves until it is ended."""
    async with Istiod(serve=mesh.serve, port=port) as istiod:
        (directory / "root-cert.pem").write_bytes(istiod.authority.roots_pem)
        print(istiod.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python -m tests.support.istiod MESH DIRECTORY [PORT]")
    mesh = Mesh.of_yaml(Path(sys.argv[1]).read_text(encoding="utf-8"))
    port = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    asyncio.run(main(mesh, Path(sys.argv[2]), port))
