"""One stage on a peer's device, or several: its programs, its state and its queue.

``StageCompute`` is the ``Compute`` that stage servers need (``roles.compute``). Where
the work is done is the runner's matter: ``inline.py`` or ``threaded.py``.
"""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import numpy as np

from swarm_jax.errors import Abandoned
from swarm_jax.stage.home import Home
from swarm_jax.stage.programs import StagePrograms
from swarm_jax.stage.queue import DeviceQueue, Kind, Operation, Runner, at_once
from swarm_jax.stage.residuals import Kept, ResidualBudget
from swarm_jax.stage.results import Arrays, Backward, Count, Forward, Reduced
from swarm_jax.stage.specs import difference, specs_of


class StageCompute:
    """Parameters, optimizer state and one gradient sum of a stage.

    Its shapes are known at once. The rest is there when ``ready`` returns: whatever is
    asked of it before waits for that. So a state can come from stage peers while
    programs are compiled.

    When the device fails in a program that was given the gradient sum, the sum is gone:
    whatever needs it raises until ``clear`` or ``load_state``.

    Args:
        programs: What the device runs.
        init: ``() -> params``: makes the initial parameters, equal each time, in
            buffers of their own.
        runner: Where the device's work is done.
        begin: Does the first work of all, before the runner does any.
        prepare: A part of that: it comes before anything is on the device.
        upload: ``upload(arrays) -> wait``: begins to bring arrays to the device;
            ``wait()`` gives them, in the thread that launches programs.
        aside: Does what takes long and is none of the queue's operations.
        depth: Operations that the device holds at once.
        close: Stops the runner.
        residuals: How many microbatches' residuals stay on the device; None: all.
        home: Where parameters and optimizer state are, and are updated.
        delayed_updates: Whether a step's gradients are at the weights before the last
            update. These then belong to the state; and there is a sum of the next step.
    """

    def __init__(
        self,
        programs: StagePrograms,
        init: Callable[[], Any],
        runner: Runner,
        *,
        begin: Callable[[Callable[[], None]], Future] = at_once,
        prepare: Callable[[], None] = lambda: None,
        upload: Callable[[Any], Callable[[], Any]] = lambda arrays: lambda: arrays,
        aside: Callable[[Callable[[], Any]], Future] = at_once,
        depth: int = 1,
        close: Callable[[], None] = lambda: None,
        residuals: ResidualBudget | None = None,
        home: Home | None = None,
        delayed_updates: bool = False,
    ):
        self.input_specs = programs.input_specs
        self.gradient_specs = programs.gradient_specs
        self.tied_leaf = programs.tied_leaf
        self._programs = programs
        self._init = init
        self._home = home or Home()
        self._params = self._opt_state = self._weights = None
        self._staleness = int(delayed_updates)
        self._previous_weights: list[Any] = []
        self._previous_tied: jax.Array | None = None
        self._gradient_sum: Any = None
        self._early_sum: Any = None
        self._reduced: Any = None
        params = jax.eval_shape(lambda: programs.to_params(programs.zeros()))
        state = params, jax.eval_shape(programs.init_optimizer, params)
        self._structure = jax.tree.structure(params)
        state = *state, *[params] * self._staleness
        self.sum_specs = specs_of(jax.tree.leaves(params))
        self._state_structure = jax.tree.structure(state)
        self.state_specs = specs_of(jax.tree.leaves(state))
        self._upload = upload
        self._aside = aside
        self._queue = DeviceQueue(runner, depth)
        self._close = close
        self._residuals = residuals or ResidualBudget()
        self._begun = begin(partial(self._begin, prepare))

    @property
    def params(self) -> Any:
        """Parameters as the last update left them; the next one takes their buffers."""
        return self._params

    @property
    def state_structure(self) -> Any:
        """What ``state`` gives, as ``jax.ShapeDtypeStruct``.

        ``(params, opt_state)``; with delayed updates the weights before, too.
        """
        leaves = [jax.ShapeDtypeStruct(shape, d) for d, shape in self.state_specs]
        return jax.tree.unflatten(self._state_structure, leaves)

    @property
    def queued(self) -> int:
        return self._queue.queued

    async def ready(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._begun))

    async def forward(
        self, x: Arrays, *, keep: bool, order: int, previous: int = 0
    ) -> Forward:
        assert specs_of(x) == self.input_specs, specs_of(x)
        uploaded = self._upload(tuple(x))
        choose_weights = self._weights_before(previous)
        kept: Kept | None = None

        def launch():
            nonlocal kept
            weights = choose_weights()
            if keep:
                kept = self._residuals.admit(weights, x)
            if kept is None or kept.is_recomputed:
                return self._programs.forward(weights, uploaded())
            y, kept.residuals, finite = self._programs.forward_keeping(
                weights, uploaded()
            )
            return y, finite

        def fetch(launched):
            y, finite = launched
            return _to_host(y), bool(finite)

        (y, finite), compute_s = await self._queue.run(
            Operation("forward", Kind.FORWARD, launch, fetch, order)
        )
        return Forward(y, kept, finite, compute_s)

    async def backward(
        self, residuals: Kept, grad_y: Arrays, *, count: Count | None, order: int
    ) -> Backward:
        assert specs_of(grad_y) == self.gradient_specs, specs_of(grad_y)
        uploaded = self._upload((residuals.x, tuple(grad_y)))
        programs = self._programs
        if residuals.is_recomputed:
            plain, adding = (
                programs.recompute_backward,
                programs.recompute_backward_adding,
            )
        else:
            plain, adding = programs.backward, programs.backward_adding

        def launch():
            weights = residuals.weights
            x, grad_y = uploaded()
            begun = x if residuals.is_recomputed else self._residuals.take(residuals)
            if count is None:
                return plain(weights, begun, grad_y)
            return self._add(count, adding, weights, begun, grad_y)

        return await self._run_backward("backward", launch, count, order)

    async def loss_backward(
        self,
        x: Arrays,
        targets: np.ndarray,
        *,
        count: Count | None,
        order: int,
        previous: int = 0,
    ) -> Backward:
        assert specs_of(x) == self.input_specs, specs_of(x)
        assert specs_of([targets]) == (self._programs.targets_spec,), targets.shape
        uploaded = self._upload((tuple(x), targets))
        choose_weights = self._weights_before(previous)

        def launch():
            arguments = (choose_weights(), *uploaded())
            if count is None:
                return self._programs.loss_backward(*arguments)
            return self._add(count, self._programs.loss_backward_adding, *arguments)

        return await self._run_backward("loss_backward", launch, count, order)

    async def loss(self, x: Arrays, targets: np.ndarray, *, order: int) -> float:
        uploaded = self._upload((tuple(x), targets))
        choose_weights = self._weights_before(0)
        return await self._run(
            "loss",
            lambda: self._programs.loss(choose_weights(), *uploaded()),
            float,
            kind=Kind.FORWARD,
            order=order,
        )

    async def gradient_sum(
        self, scale: float, tied_scale: float | None = None
    ) -> list[np.ndarray]:
        scales = scale, scale if tied_scale is None else tied_scale
        return await self._run(
            "gradient_sum",
            lambda: self._programs.scale(self._gradient_sum, *scales),
            _to_host,
        )

    async def add_to_sum(self, gradients: Arrays) -> bool:
        def launch():
            added = self._home.lend(self._copied(Home(), self._structure, gradients))
            finite, self._gradient_sum = self._programs.add(self._gradient_sum, added)
            return finite

        return await self._run("add_to_sum", launch, bool)

    async def load_reduced(self, gradients: Arrays) -> Reduced:
        digest = self._aside(partial(_digest, gradients))
        squared_norm = await self._load_reduced(gradients)
        return Reduced(squared_norm, await asyncio.wrap_future(digest))

    async def reduce_alone(self, scale: float) -> float:
        assert self.tied_leaf is None, "others have a part in the tied leaf"
        if self._home.host is not None:
            # It comes over while the device works on.
            return await self._load_reduced(await self.gradient_sum(scale))

        def launch():
            self._reduced = self._programs.scale(self._gradient_sum, scale, scale)
            return self._programs.squared_norm(self._reduced)

        return await self._run("reduce_alone", launch, float)

    async def _load_reduced(self, gradients: Arrays) -> float:
        def launch():
            self._reduced = self._copied(self._home, self._structure, gradients)
            return self._programs.squared_norm(self._reduced)

        return await self._run("load_reduced", launch, float)

    async def apply(self, gradient_norm: float) -> None:
        def launch():
            assert self._reduced is not None, "apply without a reduced gradient"
            # Dropped before, not after: the update is when memory is shortest.
            gradients, self._reduced, self._gradient_sum = self._reduced, None, None
            self._keep_weights(1 + self._staleness)
            self._keep_tied(gradients)
            params, self._params = self._to_give_away(), None
            self._params, self._opt_state, weights, done = self._programs.update(
                params, self._opt_state, gradients, gradient_norm
            )
            self._weights = self._home.lend(weights)
            self._launch_next_sum()
            return done

        await self._run("apply", launch, jax.block_until_ready)

    async def skip(self) -> None:
        def launch():
            self._reduced = self._gradient_sum = self._previous_tied = None
            self._keep_weights(self._staleness)
            self._launch_next_sum()

        await self._run("skip", launch)

    def forget_previous(self) -> None:
        self._previous_weights = self._previous_weights[: self._staleness]
        self._previous_tied = None

    async def previous_tied(self) -> np.ndarray:
        def launch():
            if self._previous_tied is None:
                raise Abandoned("the tied gradient of the last update is gone")
            return self._previous_tied

        return await self._run("previous_tied", launch, np.asarray)

    async def clear(self) -> None:
        if not self._begun.done():
            return  # nothing has been added to it, and nobody has to wait for that
        await self._run("clear", self._launch_clear)

    async def state(self) -> list[np.ndarray]:
        """The device only makes a copy of its own; it works on while that comes over.

        That takes long, and were it the queue's matter, its other results would wait.
        """
        arriving: Future | None = None

        def launch():
            nonlocal arriving
            copy = self._programs.copy((self._params, self._opt_state))
            before = self._previous_weights[: self._staleness]  # nobody changes them
            arriving = self._aside(partial(self._masters_to_host, copy, before))

        await self._run("state", launch)
        return await asyncio.wrap_future(arriving)

    async def load_state(self, state: Arrays) -> None:
        if specs_of(state) != self.state_specs:
            raise ValueError(
                "state does not fit this stage: "
                f"{difference(specs_of(state), self.state_specs)}. Fetch it from a "
                "peer of the same stage and the same experiment"
            )

        def launch():
            tree = jax.tree.unflatten(self._state_structure, state)
            self._launch_replace(*self._copied_tree(self._home, tree))

        await self._run("load_state", launch)

    async def reset(self) -> None:
        await self._run("reset", self._launch_reset)

    async def digest(self) -> str:
        return await self._run(
            "digest", lambda: self._programs.copy(self._params), _digest
        )

    def take_record(self) -> dict[str, int]:
        return self._residuals.take_record() if self.gradient_specs else {}

    def close(self) -> None:
        self._queue.cancel_waiting()
        self._close()

    def _begin(self, prepare: Callable[[], None]) -> None:
        prepare()
        self._launch_reset()

    def _release(self) -> None:
        """Frees the device's memory, whoever still has this object."""
        self._params = self._opt_state = self._weights = None
        self._gradient_sum = self._early_sum = self._reduced = None
        self._previous_weights, self._previous_tied = [], None

    def _add(self, count: Count, adding: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a program that adds to a gradient sum: which, ``count`` says."""
        if not self._staleness or not count.is_early:
            *results, self._gradient_sum = adding(*arguments, self._gradient_sum)
            return results
        if self._early_sum is None:
            self._early_sum = self._empty_sum()
        *results, self._early_sum = adding(*arguments, self._early_sum)
        return results

    def _weights_before(self, previous: int) -> Callable[[], Any]:
        """Gives the weights before so many updates: of now, not of when it is called.

        Between the two may be an update, with delayed ones.
        """

        def all_weights() -> list[Any]:
            return [self._weights, *self._previous_weights]

        known = all_weights() if self._begun.done() else None

        def give() -> Any:
            weights = known or all_weights()
            if not 0 <= previous < len(weights):
                raise Abandoned(f"the parameters before {previous} updates are gone")
            return weights[previous]

        return give

    def _copied(self, home: Home, structure: Any, arrays: Arrays) -> Any:
        return self._copied_tree(home, jax.tree.unflatten(structure, arrays))

    def _copied_tree(self, home: Home, tree: Any) -> Any:
        """In buffers of its own: the caller's memory is not ours to donate."""
        if self._programs.layout is None:
            return jax.tree.map(home.copy, tree)
        return self._programs.layout.copy(tree)

    def _masters_to_host(
        self, copy: tuple[Any, ...], before: list[Any]
    ) -> list[np.ndarray]:
        """Older weights in their masters' form: the same on all kinds of devices."""
        dtypes = [dtype for dtype, _ in self.state_specs]
        on_host = jax.tree.map(np.asarray, before)
        older = [self._programs.to_params(weights) for weights in on_host]
        found = zip(_to_host((*copy, *older)), dtypes, strict=True)
        return [array.astype(dtype, copy=False) for array, dtype in found]

    def _keep_tied(self, gradients: Any) -> None:
        if self.tied_leaf is not None:
            self._previous_tied = jax.tree.leaves(gradients)[self.tied_leaf]

    def _keep_weights(self, most: int) -> None:
        self._previous_weights = [self._weights, *self._previous_weights][:most]

    def _to_give_away(self) -> Any:
        """The parameters, in buffers that no weights share."""
        if self._home.host is not None:
            return self._params
        return self._programs.apart(self._params)

    def _launch_reset(self) -> None:
        params = self._home.make(self._init)
        opt_state = self._home.make(self._programs.init_optimizer, params)
        self._launch_replace(params, opt_state)

    def _launch_replace(self, params: Any, opt_state: Any, *before: Any) -> None:
        self._launch_clear()
        self._previous_tied = None
        self._params, self._opt_state = params, opt_state
        self._weights = self._home.lend(self._programs.cast(params))
        begun = [self._weights] * self._staleness
        older = [self._home.lend(self._programs.cast(weights)) for weights in before]
        self._previous_weights = older or begun

    def _launch_next_sum(self) -> None:
        self._gradient_sum, self._early_sum = self._early_sum, None
        if self._gradient_sum is None:
            self._gradient_sum = self._empty_sum()

    def _empty_sum(self) -> Any:
        return self._home.lend(self._programs.zeros())

    def _launch_clear(self) -> None:
        self._reduced = self._gradient_sum = self._early_sum = None
        self._gradient_sum = self._empty_sum()

    async def _run(
        self,
        name: str,
        launch: Callable[[], Any],
        fetch: Callable[[Any], Any] = lambda launched: launched,
        kind: Kind = Kind.CONTROL,
        order: int = 0,
    ) -> Any:
        result, _ = await self._queue.run(Operation(name, kind, launch, fetch, order))
        return result

    async def _run_backward(
        self, name: str, launch: Callable[[], Any], count: Count | None, order: int
    ) -> Backward:
        def fetch(launched):
            grad_x, *loss_sum, finite = launched
            return _to_host(grad_x), sum(map(float, loss_sum)), bool(finite)

        def settle(result):
            _, loss_sum, finite = result or ((), 0.0, False)
            count.settle(finite, loss_sum)

        counting = {} if count is None else {"start": count.start, "settle": settle}
        result, compute_s = await self._queue.run(
            Operation(name, Kind.BACKWARD, launch, fetch, order, **counting)
        )
        return Backward(*result, compute_s)


def _to_host(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for array in _to_host(tree):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
