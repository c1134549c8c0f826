"""Programs that are compiled before anybody waits for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swarm_jax.stage.codec import Specs, shapes_of
from swarm_jax.stage.home import Home
from swarm_jax.stage.layout import in_order, placed
from swarm_jax.stage.programs import StagePrograms


class Ahead:
    """Compiles what a stage may be asked for; runs its passes once if told to.

    Otherwise the first microbatch, validation, replay and hand-over of each peer waits
    for a compiler, and the step with it. Even what is in jax's cache takes time to
    trace and load; and peers come to the rare ones together, when the swarm recovers
    from a fault.

    Args:
        init: ``() -> params``.
        home: Where parameters and optimizer state will be.
        run_passes: Of zeros, before anything else is on the device. GPUs need it: the
            first run of cuDNN's attention records a stream, and fails for good if
            another thread moves an array meanwhile (jax 0.11.2). Without it nothing is
            run, and no memory taken.
        check: Called before each program; may raise, to end this early.

    Attributes:
        x, grad_y: Shapes of what comes for one microbatch, encoded.
        params, opt_state, weights, total, residuals: Of what the stage holds; ``total``
            is the gradient sum, which is like the weights; ``residuals`` are one
            microbatch's and None on the last stage. Where there are several devices the
            compiler says how it divides residuals: before ``compile`` they are taken as
            whole.
        is_cast: Whether weights are arrays of their own, beside the parameters.
        workspace_bytes: What the most demanding of the programs compiled so far takes
            beside its arguments, on a device: temporaries and results.
    """

    def __init__(
        self,
        programs: StagePrograms,
        init: Callable[[], Any],
        home: Home | None = None,
        *,
        run_passes: bool = False,
        check: Callable[[], None] = lambda: None,
    ):
        self._run_passes = run_passes
        self._check = check
        self._programs = programs
        self.home = home or Home()
        self.params = jax.eval_shape(init)
        self.weights = jax.eval_shape(programs.cast, self.params)
        self.opt_state = jax.eval_shape(programs.init_optimizer, self.params)
        self.total = jax.eval_shape(programs.zeros)
        self.workspace_bytes = 0
        self.x = self._microbatch(programs.input_specs)
        self.grad_y = self._microbatch(programs.gradient_specs)
        self.is_cast = programs.layout is not None or self.weights != self.params
        if (layout := programs.layout) is not None:
            self.params = placed(self.params, layout.state)
            self.weights = placed(self.weights, layout.weights)
            self.opt_state = placed(self.opt_state, layout.like(self.opt_state))
            self.total = placed(self.total, layout.sums)
        self.weights, self.total = self.home.lent_shapes((self.weights, self.total))
        self.residuals = None
        if programs.gradient_specs:
            passed = jax.eval_shape(programs.forward_keeping, self.weights, self.x)
            self.residuals = self.home.lent_shapes(passed[1])

    def compile(self) -> None:
        """All but what recomputes residuals."""
        programs, weights, x, total = self._programs, self.weights, self.x, self.total
        if programs.gradient_specs:
            keeping = self._pass(programs.forward_keeping, weights, x)
            if programs.layout is not None:
                self.residuals = placed(self.residuals, keeping.output_shardings[1])
            self._pass(programs.forward, weights, x)
            backward = weights, self.residuals, self.grad_y
            self._pass(programs.backward, *backward)
            self._pass(programs.backward_adding, *backward, total)
        else:
            (targets_BL,) = self._microbatch((programs.targets_spec,))
            self._pass(programs.loss, weights, x, targets_BL)
            self._pass(programs.loss_backward, weights, x, targets_BL)
            self._pass(programs.loss_backward_adding, weights, x, targets_BL, total)
        self._ahead(programs.add, total, self.home.lent_shapes(self.params))
        self._ahead(programs.scale, total, 1.0, 1.0)
        params, opt_state, reduced = self.home.shapes(
            (self.params, self.opt_state, self.params)
        )
        at_home = [
            self._compiled(programs.squared_norm, reduced),
            self._compiled(programs.copy, params),
            self._compiled(programs.copy, (params, opt_state)),
            self._compiled(programs.update_program, params, opt_state, reduced, 1.0),
        ]
        if self.home.host is None:
            self._make_room(*at_home)

    def compile_recomputing(self) -> None:
        """For a stage that cannot keep all residuals."""
        backward = self.weights, self.x, self.grad_y
        self._pass(self._programs.recompute_backward, *backward)
        self._pass(self._programs.recompute_backward_adding, *backward, self.total)

    def _pass(self, program: Any, *arguments: Any) -> jax.stages.Compiled:
        compiled = self._ahead(program, *arguments)
        if self._run_passes:
            with in_order(self._programs.layout):
                zeros = jax.tree.map(jnp.zeros_like, arguments)
                jax.block_until_ready(program(*zeros))
        return compiled

    def _ahead(self, program: Any, *arguments: Any) -> jax.stages.Compiled:
        compiled = self._compiled(program, *arguments)
        self._make_room(compiled)
        return compiled

    def _compiled(self, program: Any, *arguments: Any) -> jax.stages.Compiled:
        self._check()
        return program.lower(*arguments).compile()

    def _make_room(self, *programs: jax.stages.Compiled) -> None:
        self.workspace_bytes = max(self.workspace_bytes, *map(_taken_bytes, programs))

    def _microbatch(self, specs: Specs) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes, layout = shapes_of(specs), self._programs.layout
        return shapes if layout is None else placed(shapes, layout.spread(shapes))


def _taken_bytes(program: jax.stages.Compiled) -> int:
    """What it takes beside its arguments."""
    memory = program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + results
