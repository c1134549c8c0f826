"""hivemind's DHT node, whose searches are never cut short."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hivemind.dht.node import DHTNode

T = TypeVar("T")


class SearchingNode(DHTNode):
    """A node whose reads and writes go on to their end when their caller gives up.

    A search that is cancelled leaves a task of hivemind's waiting for an event that
    nobody sets: asyncio complains of it when it is collected. Its end is near anyway:
    each question has a time-out.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._searches: set[asyncio.Task] = set()

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        return await self._finish(super().get(*args, **kwargs))

    async def store(self, *args: Any, **kwargs: Any) -> bool:
        return await self._finish(super().store(*args, **kwargs))

    async def _finish(self, search: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(search)
        self._searches.add(task)
        task.add_done_callback(self._searches.discard)
        return await asyncio.shield(task)
