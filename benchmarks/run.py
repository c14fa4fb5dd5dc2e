"""``python benchmarks/run.py``: measures, prints the table, and exits 1 if a promise is broken.

Needs what ``homeroom[local]`` installs and the tests' harnesses beside it in the checkout; what it
starts lives in a temporary directory and on free ports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT / name) for name in ("server", "tools", "tests", "")]

from benchmarks import listing, relay, stdio_start  # noqa: E402
from benchmarks.stand import Stand, stand  # noqa: E402
from benchmarks.table import Row, markdown  # noqa: E402

PARTS = ("stdio", "relay", "list")


async def _measure(parts: Sequence[str], scale: float, servers: Stand) -> list[Row]:
    def times(count: int) -> int:
        return max(3, round(count * scale))

    rows: list[Row] = []
    if "stdio" in parts:
        rows += await stdio_start.measure(times(15), servers.environ("stdio"))
    if "relay" in parts:
        rows += await relay.measure(times(60), servers)
    if "list" in parts:
        rows += await listing.measure(times(40), servers, servers.directory / "listing")
    return rows


def main() -> int:
    """The exit code: 0 if every row with a target keeps it."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of runs")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)  # the servers' logs are kept, ours would be in the way
    began_s = time.monotonic()
    temporary = tempfile.TemporaryDirectory(prefix="homeroom-bench-")
    with temporary as name, stand(Path(name).resolve()) as servers:
        rows = asyncio.run(_measure(options.parts or PARTS, options.scale, servers))
    print(markdown(rows))
    took_s = time.monotonic() - began_s
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"\n{os.cpu_count()} cores, load {load}, Python {platform.python_version()},"
        f" {took_s:.0f} s. The two sides of a row were measured in turns;"
        " “more by” and the first ratio compare medians."
    )
    if options.json:
        data = {"at_s": round(time.time()), "rows": [row.data() for row in rows]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
