# SPDX-License-Identifier: Apache-2.0
"""A control plane inside a pod that does what it is told, line by line.

istiod_steps.py MESH DIRECTORY
    writes DIRECTORY/root-cert.pem, prints its address, then for each line of its input pushes
    what MESH has of that type (`Address`, `Authorization`), or a resource that cannot be decoded
    (`bad`), and prints how the client answered
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.istiod.mesh import Mesh
from tests.support.istiod.server import Istiod
from tests.xds import build
from ztunnel_py.xds.session import ADDRESS, TYPES


async def main(mesh: Mesh, directory: Path) -> None:
    """Serves one stream until there are no more lines."""
    istiod = Istiod()
    await istiod.start()
    (directory / "root-cert.pem").write_bytes(istiod.authority.roots_pem)
    print(istiod.address, flush=True)
    stream = await istiod.stream()
    await stream.opening()
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line == "bad":
            await stream.push(build.resource(ADDRESS, "bad", b"\xff"))
        else:
            (type_url,) = [url for url in TYPES if url.endswith(f".{line}")]
            await stream.push(*mesh.resources[type_url].values(), type_url=type_url)
        answer = await stream.request()
        print("refused" if answer and answer.HasField("error_detail") else "accepted", flush=True)
    await istiod.stop()


if __name__ == "__main__":
    served = Mesh.of_yaml(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asyncio.run(main(served, Path(sys.argv[2])))
