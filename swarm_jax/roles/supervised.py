"""A piece of work, and what must go on beside it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def supervised(
    work: Coroutine[Any, Any, T], *background: Coroutine[Any, Any, Any]
) -> T:
    """Runs ``work``; the first exception of any of them ends all, and is raised.

    Unlike a ``TaskGroup`` it raises that exception itself, not in a group.
    """
    working = asyncio.ensure_future(work)
    tasks = [working, *map(asyncio.ensure_future, background)]
    try:
        while not working.done():
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {working}:
                task.result()
                tasks.remove(task)
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
