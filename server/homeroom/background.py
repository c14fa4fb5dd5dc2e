"""Loops that run for as long as a block of code does.

Owns how errors come out of the two: as they are, not wrapped in a group, wherever there is one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import anyio
import anyio.abc

Loop = Callable[[], Coroutine[object, object, object]]


@asynccontextmanager
async def background(
    *loops: Callable[[], Coroutine[object, object, object]],
) -> AsyncIterator[anyio.abc.TaskGroup]:
    """Runs ``loops`` while the body runs and cancels them at its end.

    A loop that dies cancels the body and its error is raised here; the body's own error goes first.
    """
    own: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            for loop in loops:
                group.start_soon(loop)
            try:
                yield group
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                own = error
                raise
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        if own is not None:
            raise own from None
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise
