"""Joins config, model and stage: the one place that knows all three."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from models import functional
from scripts import initial_weights
from scripts.meshes import stage_layout
from scripts.stages import stage_layers
from swarm_jax.config import ExperimentConfig, to_dict
from swarm_jax.errors import ConfigError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.codec import (
    BoundaryCodec,
    Codec,
    make_boundary_codec,
    straight_through,
)
from swarm_jax.stage.compute import StageCompute
from swarm_jax.stage.export import save_layers
from swarm_jax.stage.home import optimizer_home
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.layered import LayeredState
from swarm_jax.stage.layout import Layout
from swarm_jax.stage.memory import plan_residuals
from swarm_jax.stage.optimizer import make_optimizer
from swarm_jax.stage.programs import StagePrograms, make_stage_programs
from swarm_jax.stage.residuals import ResidualBudget
from swarm_jax.stage.saved_stage import SavedStage
from swarm_jax.stage.threaded import ThreadedCompute
from swarm_jax.stage.whole_model import make_train_step

_programs: dict[tuple[str, Mesh | None], StagePrograms] = {}
_inits: dict[tuple[str, Mesh | None], Callable[[], Any]] = {}


def prepare_jax(config: ExperimentConfig) -> None:
    """Sets up this process's jax; call it before anything else uses jax."""
    model, wires = config.model, config.swarm.wires
    if "float64" in (model.parameter_dtype, model.compute_dtype, *wires):
        jax.config.update("jax_enable_x64", True)


def make_functions(
    config: ExperimentConfig, stage: int, mesh: Mesh | None = None
) -> functional.StageFunctions:
    """One stage of the model as pure functions."""
    layers, remat = stage_layers(config)[stage], config.tuning.remat
    return functional.make_stage(config.model, *layers, remat, mesh)


def make_programs(
    config: ExperimentConfig, stage: int, mesh: Mesh | None = None
) -> StagePrograms:
    """The jitted programs of a stage; all peers in a process share them.

    So do body stages of one size with boundary layers at the same places: no program
    knows where its layers are.

    Args:
        mesh: This process's devices if it computes on several.
    """
    model, swarm = config.model, config.swarm
    functions = make_functions(config, stage, mesh)
    first_layer, num_layers = stage_layers(config)[stage]
    boundaries = functional.boundaries_of(model, first_layer, num_layers)
    place = functions.is_first, functions.is_last, num_layers, boundaries
    arrays = *swarm.wires, swarm.microbatch_size
    training = to_dict(config.optimizer), config.steps, config.tuning.remat
    parts = to_dict(model), training, place, arrays
    key = json.dumps(parts, sort_keys=True), mesh
    if key not in _programs:
        _programs[key] = make_stage_programs(
            functions,
            functools.partial(functional.cast_params, model),
            _optimizer(config, functions),
            input_codec=boundary_codec(config, stage),
            output_codec=boundary_codec(config, stage + 1),
            tokens_shape=(swarm.microbatch_size, model.sequence_length),
            clip_norm=config.optimizer.clip_norm,
            layout=stage_layout(model, jax.eval_shape(lambda: functions.init(0)), mesh),
        )
    return _programs[key]


def boundary_codec(config: ExperimentConfig, stage: int) -> BoundaryCodec | None:
    """Of the boundary before ``stage``; None where no other stage is before it.

    ``stage`` may be the number of stages: what would come after the last one.
    """
    if stage in (0, config.swarm.num_stages):
        return None
    model = config.model
    width = model.width_after(stage_layers(config)[stage].first_layer)
    shape_BLD = config.swarm.microbatch_size, model.sequence_length, width
    dtype = functional.resolve_dtype(model).name
    return make_boundary_codec(config.swarm.wires, shape_BLD, dtype)


def bytes_on_wires(config: ExperimentConfig) -> dict[str, float]:
    """What the codecs make of a token: figures for a run's summary.

    Returns:
        Means over the boundaries, there and back; nothing for one stage. (A swarm,
        which measures them, sends the targets along: 4 bytes more there.)
    """
    boundaries = range(1, config.swarm.num_stages)
    codecs = [boundary_codec(config, stage) for stage in boundaries]
    tokens = config.swarm.microbatch_size * config.model.sequence_length
    ways = {
        "activation": [codec.activations for codec in codecs],
        "gradient": [codec.gradients for codec in codecs],
    }
    return {
        f"{name}_bytes_per_token_per_boundary": (
            sum(map(_encoded_bytes, way)) / len(way) / tokens
        )
        for name, way in ways.items()
        if way
    }


def _encoded_bytes(codec: Codec) -> int:
    return sum(jnp.dtype(dtype).itemsize * math.prod(s) for dtype, s in codec.specs)


def make_compute(
    config: ExperimentConfig,
    stage: int,
    *,
    inline: bool,
    duration_s: Callable[[str], float] = lambda name: 0.0,
    folder: str | None = None,
    mesh: Mesh | None = None,
) -> StageCompute:
    """A stage with its initial parameters; they, and its programs, when it is ready.

    Args:
        duration_s: For ``inline`` only.
        folder: For an experiment that starts with imported parameters: where they are.
        mesh: This process's devices if it computes on several.

    Raises:
        ConfigError: It starts with some, and there is no folder.
        CheckpointError: They are not there; unless ``inline``, ``ready`` raises it.
    """
    programs = make_programs(config, stage, mesh)
    seeded = make_init(config, stage, programs.layout)
    first_layer = stage_layers(config)[stage].first_layer
    init = _initial(config, seeded, first_layer, folder, programs.layout)
    if inline:
        return InlineCompute(
            programs, init, duration_s, delayed_updates=config.swarm.delayed_updates
        )
    tuning, residuals = config.tuning, ResidualBudget()
    home = optimizer_home(tuning.offload_optimizer)

    def prepare(check: Callable[[], None]) -> None:
        residuals.microbatches = plan_residuals(
            programs,
            seeded,
            home=home,
            residual_bytes=tuning.residual_bytes,
            most=tuning.max_queue,
            delayed_updates=config.swarm.delayed_updates,
            check=check,
        )

    return ThreadedCompute(
        programs,
        init,
        residuals,
        home,
        prepare,
        delayed_updates=config.swarm.delayed_updates,
    )


def initial_params(config: ExperimentConfig, folder: str | None) -> functional.Params:
    """Those of the whole model as one stage; ``folder`` as in ``make_compute``.

    Raises:
        ConfigError, CheckpointError: As ``make_compute``.
    """
    functions = functional.make_stage(config.model, 0, config.model.num_layers)
    seeded = jax.jit(lambda: functions.init(config.seed))
    return _initial(config, seeded, 0, folder)()


def _initial(
    config: ExperimentConfig,
    seeded: Callable[[], Any],
    first_layer: int,
    folder: str | None,
    layout: Layout | None = None,
) -> Callable[[], Any]:
    """What makes the parameters of step 0: the seed, or a file."""
    if config.initial_weights is None:
        return seeded
    if folder is None:
        raise ConfigError(
            "this experiment starts with imported parameters (initial_weights="
            f"{config.initial_weights!r}): name their folder with --checkpoint_dir"
        )
    names = jax.eval_shape(lambda: functional.to_layers(seeded(), first_layer))
    read = initial_weights.reader(config, names, folder)
    place = (
        functools.partial(jax.tree.map, jnp.asarray) if layout is None else layout.copy
    )
    return lambda: place(read())


def make_init(
    config: ExperimentConfig, stage: int, layout: Layout | None
) -> Callable[[], Any]:
    """Makes the initial parameters; to compile it takes longer than to train a step.

    On several devices each makes its part: the whole need not fit one of them.
    """
    functions = make_functions(config, stage)
    parts = to_dict(config.model), config.seed, stage_layers(config)[stage]
    key = json.dumps(parts, sort_keys=True), layout and layout.mesh
    if key not in _inits:
        pinned = {} if layout is None else {"out_shardings": layout.state}
        _inits[key] = jax.jit(lambda: functions.init(config.seed), **pinned)
    return _inits[key]


class Device(NamedTuple):
    """What a stage server computes with, and where it saves."""

    compute: StageCompute
    checkpoints: SavedStage


def make_device(
    config: ExperimentConfig, folder: str, mesh: Mesh | None, stage: int
) -> Device:
    """A stage on this process's accelerator, or several, saved to ``folder``."""
    compute = make_compute(config, stage, inline=False, folder=folder, mesh=mesh)
    return Device(compute, make_checkpoints(config, stage, compute, folder))


def make_checkpoints(
    config: ExperimentConfig, stage: int, compute: StageCompute, root: str
) -> SavedStage:
    """Where the state of ``compute`` is saved.

    Raises:
        CheckpointError: The folder is of another experiment, or cannot be written to.
    """
    folder = CheckpointFolder(
        root,
        model_fingerprint=config.model_fingerprint(),
        keep_last=config.checkpoint.keep_last,
        keep_every_steps=config.checkpoint.keep_every_steps,
    )
    first_layer = stage_layers(config)[stage].first_layer
    return SavedStage(
        LayeredState(compute.state_structure, first_layer),
        folder,
        stage=stage,
        num_stages=config.swarm.num_stages,
        config=to_dict(config),
    )


def make_control(config: ExperimentConfig, *, simulate_wire: bool = False):
    """Functions of the whole model, and what ``whole_model.make_train_step`` gives.

    Args:
        simulate_wire: Encode and decode what would cross boundaries between stages.
    """
    functions = functional.make_stage(config.model, 0, config.model.num_layers)
    if simulate_wire:
        functions = dataclasses.replace(functions, loss=_loss_over_wires(config))
    return functions, *make_train_step(
        functions.loss,
        _optimizer(config, functions),
        clip_norm=config.optimizer.clip_norm,
        microbatch_size=config.swarm.microbatch_size,
        delayed_updates=config.swarm.delayed_updates,
    )


def _loss_over_wires(config: ExperimentConfig) -> Callable[..., jax.Array]:
    """The whole model's loss, stage by stage, with the wires between them."""
    stages = [make_functions(config, stage) for stage in range(config.swarm.num_stages)]
    names = [
        jax.eval_shape(
            lambda functions=functions, first_layer=layers.first_layer: (
                functional.to_layers(functions.init(0), first_layer)
            )
        ).keys()
        for functions, layers in zip(stages, stage_layers(config), strict=True)
    ]

    def loss(params: Any, x: jax.Array, targets_BL: jax.Array) -> jax.Array:
        layers = functional.to_layers(params, 0)
        if "tied" in names[-1]:
            layers["tied"] = functional.tied_layer(layers["embed"])
        for stage, functions in enumerate(stages):
            mine = functional.from_layers({name: layers[name] for name in names[stage]})
            if functions.is_last:
                return functions.loss(mine, x, targets_BL)
            cross = straight_through(boundary_codec(config, stage + 1))
            x = cross(functions.apply(mine, x))

    return loss


def save_stage(path: Path, config: ExperimentConfig, stage: int, params: Any) -> None:
    """Writes a stage's parameters by layer (``.npz``).

    They are split on the host: a server does this in its event loop, where nothing may
    wait for a compiler.
    """
    first_layer = stage_layers(config)[stage].first_layer
    host = jax.tree.map(np.asarray, params)
    save_layers(path, functional.to_layers(host, first_layer))


def _optimizer(
    config: ExperimentConfig, functions: functional.StageFunctions
) -> optax.GradientTransformation:
    decayed = functional.matrix_mask(jax.eval_shape(lambda: functions.init(0)))
    return make_optimizer(config.optimizer, config.steps, decayed)
