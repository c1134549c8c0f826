"""Options of a soak: what they ask for, and what cannot work."""

import pytest

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, soak_options
from swarm_jax.launcher.churn import ChurnSettings


def parse(*arguments: str):
    parser = flags.Parser(prog="scripts.launch")
    flags.add_experiment(parser)
    parser.add_argument("--peers-per-stage", type=int, default=2)
    soak_options.add_arguments(parser)
    return parser.parse_args(["--config", "configs/tiny.py", *arguments])


def test_what_is_asked_for_is_asked_of_the_plan():
    soak = ("--duration", "300", "--kill-every", "5")
    assert soak_options.churn_settings(parse(*soak)) == ChurnSettings(
        every_s=5.0, seed=0, kill_whole_stage=False
    )
    more = ("--seed", "7", "--kill-whole-stage", "--peers-per-stage", "1")
    assert soak_options.churn_settings(parse(*soak, *more)) == ChurnSettings(
        every_s=5.0, seed=7, kill_whole_stage=True
    )
    assert soak_options.churn_settings(parse()) is None
    assert soak_options.churn_settings(parse("--duration", "5")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--duration 0", "--duration 0: use more"),
        ("--kill-every 5", "--kill-every needs --duration S of at least 30"),
        ("--kill-every 5 --duration 29", "needs --duration S of at least 30"),
        ("--kill-every 0 --duration 60", "--kill-every 0: use more"),
        ("--seed 1 --duration 60", "add --kill-every S"),
        ("--kill-whole-stage --duration 60", "add --kill-every S"),
        ("--kill-every 5 --duration 60 --peers-per-stage 1", "nobody to kill"),
    ],
)
def test_what_cannot_work_is_a_config_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        soak_options.churn_settings(parse(*arguments.split()))


@pytest.mark.parametrize(
    ("arguments", "steps", "named"),
    [
        ([], 150, 0),
        (["--duration", "300"], 6000, 1),
        (["--duration", "1"], 150, 1),
        (["--duration", "300", "--config.steps=40"], 40, 1),
    ],
)
def test_the_steps_last_for_the_duration_unless_the_user_said_how_many(
    arguments, steps, named
):
    args = parse(*arguments)
    soak_options.enough_steps(args, flags.experiment(args).steps)
    assert flags.experiment(args).steps == steps
    texts = flags.experiment_arguments(args)
    assert sum(text.startswith("--config.steps") for text in texts) == named
