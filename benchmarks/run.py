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

from benchmarks import (  # noqa: E402
    listing,
    mailbox,
    provision,
    recovery,
    relay,
    stdio_end,
    stdio_start,
    transports,
)
from benchmarks.stand import Stand, stand  # noqa: E402
from benchmarks.table import Row, markdown  # noqa: E402

PARTS = ("stdio", "end", "transports", "relay", "list", "mailbox", "meanwhile", "sync", "recovery")


async def _measure(
    parts: Sequence[str], scale: float, cliff: tuple[int, int], servers: Stand
) -> list[Row]:
    def times(count: int) -> int:
        return max(3, round(count * scale))

    rows: list[Row] = []
    if "stdio" in parts:
        rows += await stdio_start.measure(times(15), servers.environ("stdio"))
    if "end" in parts:
        rows += await stdio_end.measure(times(5), servers)
    if "transports" in parts:
        rows += await transports.measure(times(200), servers)
    if "relay" in parts:
        rows += await relay.measure(times(60), servers)
    if "list" in parts:
        rows += await listing.measure(times(40), servers, servers.directory / "listing")
    if "sync" in parts:
        rows += await provision.measure(
            max(1, round(3 * scale)), servers, servers.directory / "sync"
        )
    if "meanwhile" in parts:
        rows += await provision.measure_relay(times(60), servers)
    if "mailbox" in parts:
        rows += await mailbox.measure(times(40), servers.directory / "mailbox")
    if "recovery" in parts:
        rows += await recovery.measure(*cliff, servers, servers.directory / "recovery")
    return rows


def main() -> int:
    """The exit code: 0 if every row with a target keeps it."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of runs")
    parser.add_argument(
        "--conversations", type=int, default=100, help="of recovery: answers in the making"
    )
    parser.add_argument("--answer-s", type=int, default=50, help="of recovery: how long one takes")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)  # the servers' logs are kept, ours would be in the way
    began_s = time.monotonic()
    temporary = tempfile.TemporaryDirectory(prefix="homeroom-bench-")
    with temporary as name, stand(Path(name).resolve()) as servers:
        cliff = (options.conversations, options.answer_s)
        rows = asyncio.run(_measure(options.parts or PARTS, options.scale, cliff, servers))
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
