"""Programs that are compiled before anybody waits for them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from swarm_jax.stage.codec import Specs
from swarm_jax.stage.programs import StagePrograms


def compile_ahead(programs: StagePrograms, init: Callable[[], Any]) -> None:
    """Compiles all that a stage may be asked for; runs nothing, takes no memory.

    Otherwise the first microbatch, validation, replay and hand-over of each peer waits
    for a compiler, and the step with it. Even what is in jax's cache takes time to
    trace and load; and peers come to the rare ones together, when the swarm recovers
    from a fault.

    Args:
        init: ``() -> params``.
    """
    x, grad_y = _shapes(programs.input_specs), _shapes(programs.gradient_specs)
    (targets_BL,) = _shapes((programs.targets_spec,))
    params = jax.eval_shape(init)
    weights = jax.eval_shape(programs.cast, params)
    opt_state = jax.eval_shape(programs.init_optimizer, params)
    total = jax.eval_shape(programs.zeros)

    def ahead(program: Any, *arguments: Any) -> Any:
        program.lower(*arguments).compile()
        return jax.eval_shape(program, *arguments)

    if programs.gradient_specs:
        _, residuals, _ = ahead(programs.forward_keeping, weights, x)
        ahead(programs.forward, weights, x)
        ahead(programs.backward, weights, residuals, grad_y)
        ahead(programs.backward_adding, weights, residuals, grad_y, total)
    else:
        ahead(programs.loss, weights, x, targets_BL)
        ahead(programs.loss_backward, weights, x, targets_BL)
        ahead(programs.loss_backward_adding, weights, x, targets_BL, total)
    ahead(programs.add, total, total)
    ahead(programs.scale, total, 1.0, 1.0)
    ahead(programs.squared_norm, total)
    for tree in (params, (params, opt_state)):
        ahead(programs.copy, tree)
    ahead(programs.update_program, params, opt_state, total, 1.0)


def _shapes(specs: Specs) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, np.dtype(name)) for name, shape in specs)
