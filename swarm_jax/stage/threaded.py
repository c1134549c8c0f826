"""The device behind a dispatch thread: what live stage servers use.

Programs are launched by one thread, in order, and not waited for: the device then has
its next one at hand. Other threads wait for results and move arrays to and fro.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from swarm_jax.errors import Abandoned
from swarm_jax.stage.compute import StageCompute
from swarm_jax.stage.home import Home
from swarm_jax.stage.layout import Layout, in_order
from swarm_jax.stage.programs import StagePrograms
from swarm_jax.stage.queue import Finished, Operation
from swarm_jax.stage.residuals import ResidualBudget


class ThreadedCompute(StageCompute):
    """One stage on this process's default device, or on those of a layout.

    The device holds two operations at once; three where it is not the host, since
    results then take a while to come back: a tenth faster with operations of 1 ms
    (NVIDIA H200).

    Args:
        programs: What the device runs.
        init: Makes the initial parameters.
        residuals, home, delayed_updates: As in ``StageCompute``.
        prepare: ``prepare(check)``, in the thread that launches programs, before any
            other is given an array; ``check()`` raises ``Abandoned`` when all of this
            was closed meanwhile, and compiling on is of no use.
    """

    def __init__(
        self,
        programs: StagePrograms,
        init: Callable[[], Any],
        residuals: ResidualBudget | None = None,
        home: Home | None = None,
        prepare: Callable[[Callable[[], None]], None] = lambda check: None,
        delayed_updates: bool = False,
    ):
        on_host = jax.default_backend() == "cpu"
        depth = 2 if on_host else 3
        uploads = not on_host or programs.layout is not None
        self._threads = _Threads(depth, programs.layout)
        super().__init__(
            programs,
            init,
            self._threads,
            begin=self._threads.begin,
            prepare=partial(prepare, self._threads.check),
            aside=self._threads.aside,
            depth=depth,
            close=self._threads.close,
            residuals=residuals,
            home=home,
            delayed_updates=delayed_updates,
            **({"upload": self._threads.upload} if uploads else {}),
        )

    def _begin(self, prepare: Callable[[], None]) -> None:
        prepare()
        with in_order(self._programs.layout):
            self._launch_reset()

    def close(self) -> None:
        super().close()
        self._release()


class _Threads:
    """Runner with threads that launch, fetch, upload, and do what takes long.

    Args:
        depth: Operations that are waited for at once.
        layout: Where arrays are uploaded to; None: to the default device.
    """

    def __init__(self, depth: int, layout: Layout | None):
        self._layout = layout
        self._launcher = ThreadPoolExecutor(1, "device")
        self._fetchers = ThreadPoolExecutor(depth, "fetch")
        self._uploaders = ThreadPoolExecutor(2, "upload")
        self._aside = ThreadPoolExecutor(1, "aside")
        self._begun: Future = Future()
        self._is_closed = False

    def begin(self, work: Callable[[], None]) -> Future:
        self._begun = self._launcher.submit(work)
        return self._begun

    def check(self) -> None:
        if self._is_closed:
            raise Abandoned("this device was closed")

    def start(self, operation: Operation, done: Callable[[Finished], None]) -> None:
        loop = asyncio.get_running_loop()
        started_s = ready_s = 0.0

        def launch():
            nonlocal started_s
            with in_order(self._layout):
                started_s = time.perf_counter()
                return operation.launch()

        def fetch(launched: Future):
            nonlocal ready_s
            values = launched.result()
            for leaf in jax.tree.leaves(values):
                leaf.copy_to_host_async()  # which can wait: so not in the launcher
            jax.block_until_ready(values)
            ready_s = time.perf_counter()
            return operation.fetch(values)

        def report(fetched: Future) -> None:
            loop.call_soon_threadsafe(done, Finished(fetched, started_s, ready_s))

        def fetch_later(launched: Future) -> None:
            self._fetchers.submit(fetch, launched).add_done_callback(report)

        self._launcher.submit(launch).add_done_callback(fetch_later)

    def upload(self, arrays: Any) -> Callable[[], Any]:
        places = () if self._layout is None else (self._layout.spread(arrays),)

        def put():
            self._begun.result()
            return jax.device_put(arrays, *places)

        return self._uploaders.submit(put).result

    def aside(self, work: Callable[[], Any]) -> Future:
        return self._aside.submit(work)

    def close(self) -> None:
        """Waits for what has been started; nothing new may be started after."""
        self._is_closed = True
        executors = self._launcher, self._fetchers, self._uploaders, self._aside
        for executor in executors:
            executor.shutdown()
