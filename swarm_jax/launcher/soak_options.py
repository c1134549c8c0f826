"""Options of a soak: how long, how often somebody is killed, by which seed."""

import argparse

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags
from swarm_jax.launcher.churn import FAULT_FREE_S, QUIET_END_S, ChurnSettings

STEPS_PER_S = 20
"""More than any model takes: a run with ``--duration`` shall not end by its steps."""

STEPS_FIELD = "--config.steps="


def add_arguments(parser: flags.Parser) -> None:
    """Adds ``--duration``, ``--kill-every``, ``--seed``, ``--kill-whole-stage``."""
    parser.add_argument(
        "--duration",
        type=float,
        metavar="S",
        help="train for S seconds from when all servers are there, then finish the "
        f"step; the experiment's steps become {STEPS_PER_S} S if they are fewer",
    )
    parser.add_argument(
        "--kill-every",
        type=float,
        metavar="S",
        help="every S seconds kill, stop for a while or send away a random server, or "
        "kill the leading trainer of two; the dead are replaced. Never a stage's last "
        f"server. Not in the first {FAULT_FREE_S:.0f} s, which give the fault-free "
        f"speed, nor in the last {QUIET_END_S:.0f} s",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of --kill-every's choices (default: 0)"
    )
    parser.add_argument(
        "--kill-whole-stage",
        action="store_true",
        help="--kill-every may take a stage's last server too, and kills a whole stage "
        "at once in the middle of the run, which then goes back to a checkpoint",
    )


def churn_settings(args: argparse.Namespace) -> ChurnSettings | None:
    """What the arguments ask for; None: nobody is to be killed.

    Raises:
        ConfigError: Values that cannot work, or one that does nothing alone.
    """
    if args.duration is not None and args.duration <= 0:
        raise ConfigError(f"--duration {args.duration:g}: use more than 0 seconds")
    if args.kill_every is None:
        if args.seed is not None or args.kill_whole_stage:
            raise ConfigError(
                "--seed and --kill-whole-stage choose whom --kill-every kills: add "
                "--kill-every S"
            )
        return None
    if args.kill_every <= 0:
        raise ConfigError(f"--kill-every {args.kill_every:g}: use more than 0 seconds")
    shortest_s = FAULT_FREE_S + QUIET_END_S
    if args.duration is None or args.duration < shortest_s:
        raise ConfigError(
            f"--kill-every needs --duration S of at least {shortest_s:.0f}: nobody is "
            f"killed in the first {FAULT_FREE_S:.0f} s and the last {QUIET_END_S:.0f} s"
        )
    if args.peers_per_stage < 2 and not args.kill_whole_stage:
        raise ConfigError(
            f"--kill-every with --peers-per-stage {args.peers_per_stage} would find "
            "nobody to kill: use 2 or more"
        )
    return ChurnSettings(
        every_s=args.kill_every,
        seed=args.seed or 0,
        kill_whole_stage=args.kill_whole_stage,
    )


def enough_steps(args: argparse.Namespace, steps: int) -> None:
    """Overrides the experiment's ``steps`` so that they last for ``--duration``.

    Steps that the user gave stay: then the run may end earlier.
    """
    given = any(text.startswith(STEPS_FIELD) for text in args.overrides)
    if args.duration is not None and not given:
        steps = max(steps, round(args.duration * STEPS_PER_S))
        args.overrides.append(f"{STEPS_FIELD}{steps}")
