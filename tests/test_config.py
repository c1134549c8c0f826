"""Loader, overrides, fingerprints and messages of the config tree."""

import re

import pytest

from swarm_jax.config import load_config
from swarm_jax.errors import ConfigError

TINY = "configs/tiny.py"


def test_override_changes_a_leaf_and_the_fingerprints_that_depend_on_it():
    base = load_config(TINY)
    restaged = load_config(TINY, ["--config.swarm.num_stages=2"])
    retuned = load_config(TINY, ["--config.tuning.heartbeat_s=3"])
    rebalanced = load_config(TINY, ["--config.tuning.rebalancing.period_s=60"])
    reseeded = load_config(TINY, ["--config.seed=7"])
    assert restaged.swarm.num_stages == 2
    assert restaged.model_fingerprint() == base.model_fingerprint()
    assert restaged.swarm_fingerprint() != base.swarm_fingerprint()
    assert retuned.swarm_fingerprint() == base.swarm_fingerprint()
    assert rebalanced.tuning.rebalancing.period_s == 60.0
    assert rebalanced.swarm_fingerprint() == base.swarm_fingerprint()
    assert rebalanced.model_fingerprint() == base.model_fingerprint()
    assert reseeded.model_fingerprint() != base.model_fingerprint()


def test_a_switch_needs_no_value():
    assert load_config(TINY, ["--config.swarm.delayed_updates"]).swarm.delayed_updates
    with pytest.raises(ConfigError, match="write --config.FIELD=VALUE"):
        load_config(TINY, ["--config.steps"])


def test_delayed_updates_keep_swarms_apart_but_not_checkpoints():
    delayed, plain = (
        load_config(TINY, [f"--config.swarm.delayed_updates={value}"])
        for value in (True, False)
    )
    assert delayed.swarm_fingerprint() != plain.swarm_fingerprint()
    assert delayed.model_fingerprint() == plain.model_fingerprint()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.swarm.num_stage=2", "Did you mean 'swarm.num_stages'"),
        ("--config.num_stages=2", "Did you mean 'swarm.num_stages'"),
        ("--config.steps=many", "is of type int"),
        ("--config.swarm.num_stages=9", "more than model.num_layers=6"),
        ("--config.swarm.microbatch_size=5", "no multiple of swarm.microbatch_size=5"),
        ("--config.model.num_heads=3", "must be a multiple of twice"),
        ("--config.model.vocab_size=100", "use 257 or more"),
        ("--config.optimizer.name=sgd", "use one of"),
        ("--config.optimizer.name=adam", "'adam' has none; use 0, or"),
        ("--config.optimizer.schedule=steps", "use one of"),
        ("--config.optimizer.beta2=1.0", "use 0 or more, below 1"),
        ("--config.optimizer.epsilon=0.0", "use a positive number"),
        ("--config.optimizer.weight_decay=-0.1", "use 0 or more"),
        ("--config.data.corpus=web", "use 'stdlib'"),
        ("--config.validation.sets=files:x", "write 'NAME=CORPUS'"),
        ("--config.validation.sets=held_out=files:x", "other than 'held_out'"),
        ("--config.validation.sets=wiki=web:x", "validation.sets: wiki='web:x': use"),
        ("--config.validation.sets=['a=files:x','a=files:y']", "its own name"),
        ("--config.swarm.wire=int4", "use one of"),
        ("--config.tuning.heartbeat_s=0.0", "use a positive number"),
        ("--config.tuning.residual_bytes=-1", "use 0 or more"),
        ("--config.tuning.remat=dots", "nothing_saveable"),
        ("--config.tuning.rebalancing.period_s=0.0", "use a positive number"),
        ("--config.tuning.rebalancing.same_speed=0.5", "use 1 or more"),
        ("--config.tuning.rebalancing.strategy=mood", "use one of"),
        ("--steps=3", "write --config.FIELD=VALUE"),
    ],
)
def test_bad_override_names_the_field_and_the_way_out(argument, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(TINY, [argument])


def test_validation_sets_are_named_on_the_command_line():
    for text in ("wiki=jsonl:x", "['wiki=jsonl:x']", "('wiki=jsonl:x',)"):
        config = load_config(TINY, [f"--config.validation.sets={text}"])
        assert config.validation.corpora == {"wiki": "jsonl:x"}
    metrics = {"held_out": "validation_loss", "wiki": "validation_loss/wiki"}
    assert config.validation.metrics == metrics
    base = load_config(TINY)
    assert config.model_fingerprint() == base.model_fingerprint()


def test_missing_file_lists_those_that_exist():
    with pytest.raises(ConfigError, match=r"configs/tiny\.py"):
        load_config("configs/tinny.py")
