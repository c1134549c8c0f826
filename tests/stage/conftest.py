"""Stages of a toy model: quick to compile, with all that a real one has.

Shape suffixes: B microbatch, L sequence, D model, V vocabulary.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swarm_jax.stage.codec import make_boundary_codec
from swarm_jax.stage.inline import InlineCompute
from swarm_jax.stage.programs import StagePrograms, make_stage_programs

NUM_LAYERS, MODEL_DIM, VOCAB_SIZE = 4, 6, 11
TOKENS_SHAPE = 3, 10


@dataclass(frozen=True)
class ToyStage:
    """Embedding, blocks ``x + tanh((x * scale) kernel)``, loss."""

    first_layer: int
    num_layers: int
    tied = None

    @property
    def is_first(self):
        return self.first_layer == 0

    @property
    def is_last(self):
        return self.first_layer + self.num_layers == NUM_LAYERS

    def init(self, seed):
        generator = np.random.default_rng(seed)

        def draw(*shape):
            return generator.normal(scale=0.5, size=shape).astype(np.float32)

        embed, head = draw(VOCAB_SIZE, MODEL_DIM), draw(MODEL_DIM, VOCAB_SIZE)
        blocks = {
            "kernel": draw(NUM_LAYERS, MODEL_DIM, MODEL_DIM),
            "scale": draw(NUM_LAYERS, MODEL_DIM),
        }
        mine = slice(self.first_layer, self.first_layer + self.num_layers)
        params = {"blocks": jax.tree.map(lambda leaf: leaf[mine], blocks)}
        if self.is_first:
            params["embed"] = embed
        if self.is_last:
            params["head"] = head
        return jax.tree.map(jnp.asarray, params)

    def apply(self, params, x):
        if self.is_first:
            x = params["embed"].at[x].get(mode="fill", fill_value=jnp.nan)

        def block(x_BLD, layer):
            scaled_BLD = x_BLD * layer["scale"][None, None]
            return x_BLD + jnp.tanh(scaled_BLD @ layer["kernel"]), None

        if not isinstance(params["blocks"], tuple):
            return jax.lax.scan(block, x, params["blocks"])[0]
        for layer in params["blocks"]:
            x, _ = block(x, layer)
        return x

    def loss(self, params, x, targets_BL):
        logits_BLV = (self.apply(params, x) @ params["head"]).astype(jnp.float32)
        losses_BL = optax.softmax_cross_entropy_with_integer_labels(
            logits_BLV, jnp.maximum(targets_BL, 0)
        )
        return jnp.sum(losses_BL, where=targets_BL >= 0)


@dataclass(frozen=True)
class Stage:
    programs: StagePrograms
    params: dict


def cast_to(dtype, params):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@functools.cache
def make_programs(dtype, first_layer, num_layers, wires):
    stage = ToyStage(first_layer, num_layers)
    codec = make_boundary_codec(wires, (*TOKENS_SHAPE, MODEL_DIM), dtype)
    return make_stage_programs(
        stage,
        functools.partial(cast_to, dtype),
        optax.adamw(1e-2),
        input_codec=None if stage.is_first else codec,
        output_codec=None if stage.is_last else codec,
        tokens_shape=TOKENS_SHAPE,
        clip_norm=0.5,
    )


@pytest.fixture(scope="session")
def make_stages():
    """``make(layers_per_stage, dtype, wires) -> list[Stage]``, initialised from seed 7.

    ``wires`` are of activations and gradients; by default they have the dtype.
    Body stages of one size share their programs, which are compiled once per session.
    """

    def make(layers_per_stage, dtype="float32", wires=None):
        stages, first_layer = [], 0
        for index, num_layers in enumerate(layers_per_stage):
            in_body = 0 < index < len(layers_per_stage) - 1
            place = 1 if in_body else first_layer, num_layers
            programs = make_programs(dtype, *place, wires or (dtype, dtype))
            params = ToyStage(first_layer, num_layers).init(7)
            stages.append(Stage(programs, params))
            first_layer += num_layers
        return stages

    return make


@pytest.fixture(scope="session")
def toy():
    """The whole model as one stage."""
    return ToyStage(0, NUM_LAYERS)


@pytest.fixture(scope="session")
def make_microbatch():
    """``make(seed) -> (inputs_BL, targets_BL)``; some targets carry no loss."""

    def make(seed):
        batch, length = TOKENS_SHAPE
        generator = np.random.default_rng(seed)
        tokens = generator.integers(VOCAB_SIZE, size=(batch, length + 1))
        tokens = tokens.astype(np.int32)
        inputs_BL, targets_BL = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        targets_BL[0, :3] = -1
        return inputs_BL, targets_BL

    return make


@pytest.fixture(scope="session")
def make_activation():
    """``make(seed) -> x_BLD`` in float32."""

    def make(seed):
        generator = np.random.default_rng(seed)
        return generator.normal(size=(*TOKENS_SHAPE, MODEL_DIM)).astype(np.float32)

    return make


@pytest.fixture(autouse=True, scope="session")
def jax_for_tests():
    """Halves the time to compile; broadcasting over a missing axis is an error."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def make_pair(make_stages):
    """``make(kind, dtype)``: a first and a last stage that compute."""
    made = []

    def make(kind=InlineCompute, dtype="float32"):
        stages = make_stages((1, 3), dtype)
        pair = [
            kind(stage.programs, functools.partial(stage.programs.copy, stage.params))
            for stage in stages
        ]
        made.extend(pair)
        return pair

    yield make
    for compute in made:
        compute.close()
