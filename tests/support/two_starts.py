"""Two bridges at the same moment, again and again: two_starts.py DIRECTORY ROUNDS same|own|copy

Needs Homeroom's settings in the environment. Everything is imported once; each round forks two
processes, which open the app at the same signal, over the ``same`` store or each over its ``own``,
or each over a ``copy`` of one that has run the bridge in the round before, and say as a line of
JSON what each has got.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import anyio

from homeroom import claim
from homeroom.app import App, open_app
from homeroom.config import load_config

LIMIT_S = 30.0


async def _bridge(directory: Path, done: int) -> dict[str, object]:
    config = load_config().model_copy(update={"data_dir": directory})
    async with open_app(config) as app:
        with anyio.fail_after(LIMIT_S):
            while (outcome := await _outcome(app)) is None:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        # Neither ends before the other knows: what is free would be taken.
        os.write(done, b"x")
        await anyio.to_thread.run_sync(os.read, int(os.environ["GO_ON"]), 1)
        return outcome


async def _outcome(app: App) -> dict[str, object] | None:
    bridge = app.bridge
    holder = await app._store.get_lease()
    if holder is None:
        return None
    if holder.owner != bridge.owner:
        return {"lease": False, "reads": False, "problem": ""}
    state = bridge.intake
    if not (state.last_answer_at_s or state.problem):
        return None
    return {"lease": True, "reads": not state.problem, "problem": state.problem}


def _child(directory: Path, ready: int, done: int, told: int) -> NoReturn:
    code = 1
    try:
        os.read(ready, 1)  # ends when the parent lets both go
        outcome = anyio.run(_bridge, directory, done)
        os.write(told, (json.dumps(outcome) + "\n").encode())
        code = 0
    except BaseException:
        traceback.print_exc()
        os.write(done, b"x")  # nobody waits for the other's end
    finally:
        sys.stderr.flush()
        os._exit(code)


def round_of(directory: Path, stores: str, before: Path) -> list[dict[str, object]]:
    """What each of the two has got. For copies, what ``before`` left is copied."""
    if stores == "copy" and before.exists():
        for number in range(2):
            shutil.copytree(before / "0", directory / str(number))
    ready, go = os.pipe()
    done, is_done = os.pipe()
    go_on, let_go = os.pipe()
    heard, told = os.pipe()
    os.environ["GO_ON"] = str(go_on)
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.close(let_go)
            own = directory if stores == "same" else directory / str(number)
            _child(own, ready, is_done, told)
        pids.append(pid)
    for end in (ready, is_done, go_on, told):
        os.close(end)
    os.close(go)
    for _ in pids:
        os.read(done, 1)
    os.close(let_go)
    for pid in pids:
        os.waitpid(pid, 0)
    with os.fdopen(heard) as lines:
        found = [json.loads(line) for line in lines]
    os.close(done)
    return found


def main() -> None:
    directory, rounds, stores = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    claim.SETTLE_S = 0.3  # loopback: a request takes a few milliseconds
    for number in range(rounds):
        pair = round_of(directory / str(number), stores, directory / str(number - 1))
        print(json.dumps(pair), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
