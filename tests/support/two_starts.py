"""Two bridges, again and again: two_starts.py DIRECTORY ROUNDS same|own|copy|live

Needs Homeroom's settings in the environment. Everything is imported once; each round forks two
processes, which open the app at the same signal, over the ``same`` store or each over its ``own``,
or each over a ``copy`` of one that has run the bridge in the round before, and say as a line of
JSON what each has got. ``live``: the second one starts over a copy of what the first one uses, made
when that reads the rooms.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import anyio

from homeroom import claim
from homeroom.app import App, open_app
from homeroom.config import load_config

LIMIT_S = 30.0


async def _bridge(directory: Path, done: int) -> dict[str, object]:
    began_ms = time.time_ns() // 1_000_000
    config = load_config().model_copy(update={"data_dir": directory})
    async with open_app(config) as app:
        with anyio.fail_after(LIMIT_S):
            while (outcome := await _outcome(app, began_ms)) is None:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        # Neither ends before the other knows: what is free would be taken.
        os.write(done, b"x")
        await anyio.to_thread.run_sync(os.read, int(os.environ["GO_ON"]), 1)
        return await _outcome(app, began_ms) or outcome


async def _outcome(app: App, began_ms: int) -> dict[str, object] | None:
    bridge = app.bridge
    holder = await app._store.get_lease()
    if holder is None:
        return None
    if holder.owner != bridge.owner:
        return {"lease": False, "reads": False, "problem": ""}
    problem = bridge.intake.problem
    reads = not problem and await app._store.get_heard_ms() >= began_ms
    if not (reads or problem) or "it is found out" in problem:
        return None
    return {"lease": True, "reads": reads, "problem": problem}


def _child(number: int, directory: Path, ready: int, done: int, told: int) -> NoReturn:
    code = 1
    try:
        os.read(ready, 1)  # ends when the parent lets both go
        outcome = anyio.run(_bridge, directory, done)
        os.write(told, (json.dumps([number, outcome]) + "\n").encode())
        code = 0
    except BaseException:
        traceback.print_exc()
        os.write(done, b"x")  # nobody waits for the other's end
    finally:
        sys.stderr.flush()
        os._exit(code)


def round_of(directory: Path, stores: str, before: Path) -> list[dict[str, object]]:
    """What the first and the second have got. For copies, what ``before`` left is copied."""
    if stores == "copy" and before.exists():
        for number in range(2):
            shutil.copytree(before / "0", directory / str(number))
    starts = [os.pipe() for _ in range(2)]
    done, is_done = os.pipe()
    go_on, let_go = os.pipe()
    heard, told = os.pipe()
    os.environ["GO_ON"] = str(go_on)
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            for _, go in starts:
                os.close(go)
            os.close(let_go)
            own = directory if stores == "same" else directory / str(number)
            _child(number, own, starts[number][0], is_done, told)
        pids.append(pid)
    for end in (*(ready for ready, _ in starts), is_done, go_on, told):
        os.close(end)
    for number, (_, go) in enumerate(starts):
        if number and stores == "live":
            os.read(done, 1)
            _copy_used(directory / "0", directory / "1")
        os.close(go)
    for _ in pids[stores == "live" :]:
        os.read(done, 1)
    os.close(let_go)
    for pid in pids:
        os.waitpid(pid, 0)
    with os.fdopen(heard) as lines:
        found = sorted((json.loads(line) for line in lines), key=lambda one: one[0])
    os.close(done)
    return [outcome for _, outcome in found]


def _copy_used(used: Path, copy: Path) -> None:
    copy.mkdir()
    with closing(sqlite3.connect(used / "homeroom.db")) as store:
        store.execute("VACUUM INTO ?", (str(copy / "homeroom.db"),))
    with closing(sqlite3.connect(copy / "homeroom.db")) as store, store:
        store.execute("UPDATE lease SET until_ms = 0")  # nobody waits until it has lapsed


def main() -> None:
    directory, rounds, stores = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Loopback: a request takes a few milliseconds.
    claim.SETTLE_S = claim.LOOK_S = 0.3
    for number in range(rounds):
        pair = round_of(directory / str(number), stores, directory / str(number - 1))
        print(json.dumps(pair), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
