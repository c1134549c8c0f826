"""Tiny stages. Sizes are chosen so that no activation has the size of a matrix."""

import functools
from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytest

from models import functional
from models.config import GPTConfig
from swarm_jax.stage.codec import make_codec
from swarm_jax.stage.programs import StagePrograms, make_stage_programs

SIZES = dict(
    num_layers=4,
    model_dim=24,
    num_heads=2,
    ffn_dim=40,
    vocab_size=29,
    sequence_length=10,
)
MICROBATCH_SIZE = 3


@dataclass(frozen=True)
class Stage:
    programs: StagePrograms
    params: dict
    first_layer: int


@functools.cache
def make_programs(dtype, first_layer, num_layers):
    model = GPTConfig(**SIZES, compute_dtype=dtype)
    tokens_shape = (MICROBATCH_SIZE, model.sequence_length)
    return make_stage_programs(
        functional.make_stage(model, first_layer, num_layers),
        functools.partial(functional.cast_params, model),
        make_codec(dtype, (*tokens_shape, model.model_dim), dtype),
        optax.adamw(1e-2),
        tokens_shape=tokens_shape,
        clip_norm=0.5,
    )


@pytest.fixture(scope="session")
def make_stages():
    """``make(layers_per_stage, dtype) -> list[Stage]``, from seed 7.

    Body stages of one size share their programs, which are compiled once per session.
    """

    def make(layers_per_stage, dtype="float32"):
        model = GPTConfig(**SIZES, compute_dtype=dtype)
        stages, first_layer = [], 0
        for index, num_layers in enumerate(layers_per_stage):
            functions = functional.make_stage(model, first_layer, num_layers)
            in_body = 0 < index < len(layers_per_stage) - 1
            programs = make_programs(dtype, 1 if in_body else first_layer, num_layers)
            params = jax.jit(functions.init)(7)
            stages.append(Stage(programs, params, first_layer))
            first_layer += num_layers
        return stages

    return make


@pytest.fixture(scope="session")
def model():
    return GPTConfig(**SIZES, compute_dtype="float32")


@pytest.fixture(scope="session")
def make_microbatch():
    """``make(seed) -> (inputs_BL, targets_BL)``; some targets carry no loss."""

    def make(seed):
        generator = np.random.default_rng(seed)
        shape = (MICROBATCH_SIZE, SIZES["sequence_length"] + 1)
        tokens = generator.integers(0, SIZES["vocab_size"], shape, dtype=np.int32)
        inputs_BL, targets_BL = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        targets_BL[0, :3] = -1
        return inputs_BL, targets_BL

    return make


@pytest.fixture(scope="session")
def make_activation():
    """``make(seed) -> x_BLD`` in float32."""

    def make(seed):
        shape = (MICROBATCH_SIZE, SIZES["sequence_length"], SIZES["model_dim"])
        generator = np.random.default_rng(seed)
        return generator.normal(size=shape).astype(np.float32)

    return make


@pytest.fixture(autouse=True, scope="session")
def jax_for_tests():
    """Halves the time to compile; broadcasting over a missing axis is an error."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
