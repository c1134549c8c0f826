"""Joins config, model and stage: the one place that knows all three."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from models import functional
from scripts.stages import stage_layers
from swarm_jax.config import ExperimentConfig, to_dict
from swarm_jax.stage.ahead import compile_ahead
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.codec import make_codec
from swarm_jax.stage.compute import StageCompute
from swarm_jax.stage.export import save_layers
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.layered import LayeredState
from swarm_jax.stage.optimizer import make_optimizer
from swarm_jax.stage.programs import StagePrograms, make_stage_programs
from swarm_jax.stage.saved_stage import SavedStage
from swarm_jax.stage.threaded import ThreadedCompute
from swarm_jax.stage.whole_model import make_train_step

_programs: dict[str, StagePrograms] = {}
_inits: dict[str, Callable[[], Any]] = {}


def prepare_jax(config: ExperimentConfig) -> None:
    """Sets up this process's jax; call it before anything else uses jax."""
    dtypes = config.model.parameter_dtype, config.model.compute_dtype, config.swarm.wire
    if "float64" in dtypes:
        jax.config.update("jax_enable_x64", True)


def make_functions(config: ExperimentConfig, stage: int) -> functional.StageFunctions:
    """One stage of the model as pure functions."""
    return functional.make_stage(config.model, *stage_layers(config)[stage])


def make_programs(config: ExperimentConfig, stage: int) -> StagePrograms:
    """The jitted programs of a stage; all peers in a process share them.

    So do body stages of one size: no program knows where its layers are.
    """
    model, swarm = config.model, config.swarm
    functions = make_functions(config, stage)
    num_layers = stage_layers(config)[stage].num_layers
    place = functions.is_first, functions.is_last, num_layers
    arrays = swarm.wire, swarm.microbatch_size
    parts = to_dict(model), to_dict(config.optimizer), config.steps, place, arrays
    key = json.dumps(parts, sort_keys=True)
    if key not in _programs:
        tokens_shape = swarm.microbatch_size, model.sequence_length
        dtype = functional.resolve_dtype(model).name
        _programs[key] = make_stage_programs(
            functions,
            functools.partial(functional.cast_params, model),
            make_codec(swarm.wire, (*tokens_shape, model.model_dim), dtype),
            _optimizer(config, functions),
            tokens_shape=tokens_shape,
            clip_norm=config.optimizer.clip_norm,
        )
    return _programs[key]


def make_compute(
    config: ExperimentConfig,
    stage: int,
    *,
    inline: bool,
    duration_s: Callable[[str], float] = lambda name: 0.0,
) -> StageCompute:
    """A stage with its initial parameters; ``duration_s`` is for ``inline`` only."""
    programs, init = make_programs(config, stage), _make_init(config, stage)
    if inline:
        return InlineCompute(programs, init, duration_s)
    compile_ahead(programs, init)
    return ThreadedCompute(programs, init)


def _make_init(config: ExperimentConfig, stage: int) -> Callable[[], Any]:
    """Makes the initial parameters; to compile it takes longer than to train a step."""
    functions = make_functions(config, stage)
    parts = to_dict(config.model), config.seed, stage_layers(config)[stage]
    key = json.dumps(parts, sort_keys=True)
    if key not in _inits:
        _inits[key] = jax.jit(lambda: functions.init(config.seed))
    return _inits[key]


class Device(NamedTuple):
    """What a stage server computes with, and where it saves."""

    compute: StageCompute
    checkpoints: SavedStage


def make_device(config: ExperimentConfig, folder: str, stage: int) -> Device:
    """A stage on this process's accelerator, saved to ``folder``."""
    compute = make_compute(config, stage, inline=False)
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


def make_control(config: ExperimentConfig):
    """Functions of the whole model, and what ``whole_model.make_train_step`` gives."""
    functions = functional.make_stage(config.model, 0, config.model.num_layers)
    return functions, *make_train_step(
        functions.loss,
        _optimizer(config, functions),
        clip_norm=config.optimizer.clip_norm,
        microbatch_size=config.swarm.microbatch_size,
    )


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
