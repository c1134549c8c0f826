"""scripts.evaluate: the figures of a checkpoint, and what it refuses."""

import json
import math

import jax
import numpy as np
import pytest

from models.functional import from_layers, make_stage
from scripts import evaluate
from swarm_jax.config import load_config
from swarm_jax.data.dataset import open_dataset
from swarm_jax.data_config import HELD_OUT
from swarm_jax.errors import CheckpointError, ConfigError
from swarm_jax.stage.layered import nested


@pytest.fixture
def arguments(tmp_path, experiment):
    return [
        *("--checkpoint", str(tmp_path / "run"), "--config", experiment),
        *("--cache_dir", str(tmp_path / "cache"), "--device", "cpu"),
    ]


def test_the_figures_are_those_of_the_model(
    arguments, make_checkpoint, experiment, tmp_path, capsys
):
    layers = make_checkpoint()
    evaluate.main([*arguments, "--json", str(tmp_path / "figures.json")])
    record = json.loads((tmp_path / "figures.json").read_text())
    assert (record["step"], list(record["sets"])) == (0, ["held_out"])
    figures = record["sets"]["held_out"]
    assert figures["tokens"] == 6 * 16

    config = load_config(experiment)
    data = open_dataset(config, tmp_path / "cache")
    microbatches = [data.validation_microbatch(HELD_OUT, index) for index in range(3)]
    inputs = np.concatenate([microbatch.inputs for microbatch in microbatches])
    targets = np.concatenate([microbatch.targets for microbatch in microbatches])
    params = from_layers({name: nested(arrays) for name, arrays in layers.items()})
    logits = jax.jit(make_stage(config.model, 0, 2).logits)(params, inputs)
    chances = np.asarray(jax.nn.log_softmax(logits))
    expected = -np.mean(np.take_along_axis(chances, targets[..., None], axis=-1))
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert f"{expected:.4f}" in capsys.readouterr().out


def test_another_model_or_vocabulary_is_refused(arguments, make_checkpoint):
    make_checkpoint()
    others = ("--config.model.ffn_dim=32", "--config.data.tokenizer=bpe")
    others += ("--config.data.bpe_vocab_size=300",)
    with pytest.raises(ConfigError) as refused:
        evaluate.main([*arguments, *others])
    assert "model.ffn_dim is 24 there and 32 here" in str(refused.value)
    assert "data.tokenizer is 'bytes' there and 'bpe' here" in str(refused.value)


@pytest.mark.parametrize("step", [[], ["--step", "3"]])
def test_no_checkpoint_is_said_so(arguments, step):
    with pytest.raises(CheckpointError, match="no complete checkpoint|step 3"):
        evaluate.main([*arguments, *step])


@pytest.mark.parametrize("given", [[], ["--checkpoint", "a", "--initial_peers", "b"]])
def test_what_is_evaluated_must_be_clear(experiment, given):
    with pytest.raises(ConfigError, match="either --checkpoint or --initial_peers"):
        evaluate.main(["--config", experiment, *given])


def test_a_swarm_has_no_older_steps(experiment):
    arguments = ["--config", experiment, "--initial_peers", "b", "--step", "3"]
    with pytest.raises(ConfigError, match="--step is of a checkpoint"):
        evaluate.main(arguments)
