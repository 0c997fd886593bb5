# SPDX-License-Identifier: Apache-2.0
"""Opens connections at a steady rate, and says what became of them.

surge.py HOST PORT RATE SECONDS: each reads a greeting; prints `{"event": "going"}` after the first
one and in the end a count per outcome.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

GREETING_SIZE = 32


async def visit(host: str, port: int) -> str:
    """One connection; `ok`, or what went wrong, and when."""
    when = "connecting"
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, port)
            when = "connected"
            try:
                greeting = await reader.readexactly(GREETING_SIZE)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return f"{when}: {type(error).__name__}: {error}"
    return "ok" if greeting.strip() else "nothing said"


async def main() -> None:
    """Reads the command line."""
    host, port, rate, seconds = sys.argv[1], *map(float, sys.argv[2:])
    outcomes = Counter([await visit(host, int(port))])
    print(json.dumps({"event": "going"}), flush=True)
    begin, visits = time.monotonic(), []
    for number in range(int(rate * seconds)):
        delay = begin + number / rate - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        visits.append(asyncio.ensure_future(visit(host, int(port))))
    outcomes.update(await asyncio.gather(*visits))
    print(json.dumps({"event": "done", "outcomes": outcomes}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
