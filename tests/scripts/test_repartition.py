"""scripts.repartition: plans, the commands it prints, and what it refuses."""

import json
import shlex

import numpy as np
import pytest

from scripts import repartition
from scripts.fleet import Seen, observed
from swarm_jax.config import load_config
from swarm_jax.errors import CheckpointError, ConfigError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.manifests import Saved

CONFIG = """
from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config():
    model = GPTConfig(
        num_layers=6, model_dim=512, num_heads=2, ffn_dim=2048, sequence_length=4
    )
    config = ExperimentConfig(run_id="test", steps=9, model=model)
    config.optimizer.warmup_steps = 1
    config.swarm.num_stages = 3
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def workdir(tmp_path, config_file):
    """A run folder with a complete checkpoint of step 4."""
    save(tmp_path / "run", load_config(config_file), step=4)
    return tmp_path / "run"


def save(workdir, config, step):
    folder = CheckpointFolder(
        workdir / "checkpoints", model_fingerprint=config.model_fingerprint()
    )
    saved = Saved(step, 0, "lineage", None)
    layers = {"embed": {"params/table": np.ones(2, np.float32)}}
    digest = folder.save(0, 1, saved, layers, {})
    folder.complete(step, 0, {0: digest}, config={}, summary={})


def write_swarm(workdir, stages):
    """The line that a trainer writes of these peers' tokens per second, by name."""
    record = {
        "stages": [
            {
                "stage": stage,
                "peers": [
                    {
                        "peer": f"id-{name}",
                        "name": name,
                        "state": "ONLINE",
                        "queue": 0,
                        "tokens_per_s": speed,
                    }
                    for name, speed in peers.items()
                ],
            }
            for stage, peers in enumerate(stages)
        ]
    }
    path = workdir / "metrics" / "swarm.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record) + "\n")


@pytest.fixture
def plan(config_file, workdir, tmp_path):
    """Runs the script; gives its report."""

    def run(*arguments):
        path = tmp_path / "report.json"
        command = ["--config", config_file, "--workdir", str(workdir)]
        assert repartition.main([*command, *arguments, "--json", str(path)]) == 0
        return json.loads(path.read_text())

    return run


def test_a_fast_peer_gets_more_layers(plan, capsys):
    report = plan("--fleet", "400,100,100")
    proposed = report["proposed"]
    layers = dict(
        zip(sum(proposed["peers"], []), proposed["layers_per_stage"], strict=True)
    )
    assert layers == {"peer0": 4, "peer1": 1, "peer2": 1}
    assert proposed["throughput"] > 1.5 * report["same_partition"]["throughput"]
    assert report["step"] == 4 and report["now"] is None
    printed = capsys.readouterr().out
    assert "step 4" in printed and "Nothing in it is converted" in printed


def test_the_printed_commands_start_that_partition(plan, config_file, capsys):
    report = plan("--fleet", "100,100,100,100", "--num_stages", "2")
    printed = capsys.readouterr().out
    assert all(command in printed for command in report["commands"])
    *servers, trainer = map(shlex.split, report["commands"])
    assert trainer[2] == "scripts.run_trainer"
    for words in (*servers, trainer):
        overrides = [word for word in words if word.startswith("--config.")]
        swarm = load_config(config_file, overrides).swarm
        assert list(swarm.layers_per_stage) == report["proposed"]["layers_per_stage"]
    stages = {
        words[words.index("--name") + 1]: int(words[words.index("--stage") + 1])
        for words in servers
    }
    expected = enumerate(report["proposed"]["peers"])
    assert stages == {peer: stage for stage, peers in expected for peer in peers}


def test_overrides_of_the_old_partition_do_not_stay_in_the_commands(plan):
    report = plan(
        "--config.swarm.num_stages=2",
        "--config.tuning.ban_s=2.0",
        *("--fleet", "1,1,1", "--num_stages", "3"),
    )
    for words in map(shlex.split, report["commands"]):
        assert "--config.swarm.num_stages=2" not in words
        assert "--config.tuning.ban_s=2.0" in words


def test_the_fleet_is_read_from_the_last_run(plan, workdir):
    write_swarm(workdir, [{"a": 100.0, "b": 100.0}, {"c": 100.0}, {"d": 300.0}])
    report = plan()
    assert report["unit"] == "tokens/s"
    assert report["now"]["peers"] == [["a", "b"], ["c"], ["d"]]
    assert report["now"]["throughput"] == pytest.approx(100)
    assert report["proposed"]["throughput"] > 130
    assert sorted(report["speeds"]) == ["a", "b", "c", "d"]


def test_a_peer_that_was_not_measured_counts_as_the_mean(plan, workdir):
    write_swarm(workdir, [{"a": 100.0}, {"b": 0.0}, {"c": 100.0}])
    speeds = plan()["speeds"]
    assert speeds["b"] == pytest.approx((speeds["a"] + speeds["c"]) / 2)


def test_a_peer_that_has_just_moved_is_counted_once(config_file):
    config = load_config(config_file)
    stages = [
        {"a": Seen("a", "OFFLINE", 0, 90.0), "b": Seen("b", "ONLINE", 0, 90.0)},
        {"a": Seen("a", "JOINING", 0, 0.0), "c": Seen("b", "ONLINE", 0, 90.0)},
        {"a": Seen("a", "ONLINE", 0, 90.0)},
    ]
    found = observed(stages, config)
    assert found.stages == [["b-b"], ["b-c"], ["a"]]


def test_a_partition_that_suits_the_fleet_is_kept(plan):
    report = plan("--fleet", "1,1,1", "--config.swarm.layers_per_stage=(1,2,3)")
    assert report["proposed"]["layers_per_stage"] == [2, 2, 2]
    report = plan("--fleet", "1,2,3", "--config.swarm.layers_per_stage=(1,2,3)")
    assert report["proposed"]["layers_per_stage"] == [1, 2, 3]


def test_any_number_of_stages_is_as_few_as_the_blocks_fit_into(plan):
    report = plan("--fleet", "1,1,1,1,1,1", "--num_stages", "any")
    assert report["proposed"]["layers_per_stage"] == [2, 2, 2]
    report = plan("--fleet", "1,1,1,1,1,1", "--num_stages", "any", "--max_layers", "3")
    assert report["proposed"]["layers_per_stage"] == [3, 3]


def test_a_fleet_too_small_for_the_old_partition_gets_a_new_one(plan):
    report = plan("--fleet", "1,1", "--num_stages", "2")
    assert report["same_partition"] is None
    assert report["proposed"]["layers_per_stage"] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fleet", "1,1"], "3 stages need as many peers, and there are 2"),
        (["--fleet", "1,fast"], "use positive numbers"),
        (["--fleet", "1,-1"], "use positive numbers"),
        (["--fleet", "1," * 7 + "1", "--num_stages", "7"], "the model has 6 blocks"),
        (["--fleet", "1,1,1", "--max_layers", "1"], "cannot hold the model's 6"),
        (["--fleet", "1,1", "--num_stages", "any"], "cannot hold the model's 6"),
        (["--fleet", "1,1,1", "--num_stages", "0"], "--num_stages 0"),
        (["--fleet", "1,1,1", "--num_stages", "many"], "--num_stages many"),
        (["--fleet", "1,1,1", "--max_layers", "0"], "--max_layers 0"),
        (["--fleet", "1", "--initial_peers", "/ip4/1.2.3.4/tcp/1"], "use one of them"),
        ([], "no peer is in the metrics"),
    ],
)
def test_what_cannot_be_planned_is_explained(plan, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(*arguments)


def test_metrics_of_another_number_of_stages_are_refused(plan, workdir):
    write_swarm(workdir, [{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ConfigError, match="had 2 stages, this experiment has 3"):
        plan()


def test_a_swarm_that_has_not_trained_yet_is_not_planned_for(plan, workdir):
    write_swarm(workdir, [{"a": 0.0}, {"b": 0.0}, {"c": 0.0}])
    with pytest.raises(ConfigError, match="no peer of this swarm has been measured"):
        plan()


def test_without_a_checkpoint_nothing_is_planned(config_file, tmp_path):
    command = ["--config", config_file, "--workdir", str(tmp_path / "empty")]
    with pytest.raises(CheckpointError, match="no complete checkpoint of all stages"):
        repartition.main([*command, "--fleet", "1,1,1"])


def test_another_experiment_s_checkpoint_is_refused(plan):
    with pytest.raises(CheckpointError, match="of another experiment"):
        plan("--fleet", "1,1,1", "--config.seed=7")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fleet", "1,1,1"], "where are the checkpoints"),
        (["--checkpoint_dir", "x"], "which peers are there"),
    ],
)
def test_what_is_not_named_is_asked_for(config_file, arguments, message):
    with pytest.raises(ConfigError, match=message):
        repartition.main(["--config", config_file, *arguments])
