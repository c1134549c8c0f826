"""Options that the scripts share, named as in hivemind, and errors as one line.

A script reads its options before it imports anything heavy, so that a typo is answered
at once::

    def main(argv=None):
        parser = flags.Parser(description=__doc__)
        flags.add_experiment(parser)
        args = parser.parse_args(argv)
        config = flags.experiment(args)
        ...

    if __name__ == "__main__":
        flags.run_main(main)
"""

import argparse
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from swarm_jax.config import ExperimentConfig, load_config
from swarm_jax.errors import CheckpointError, ConfigError, StartupError
from swarm_jax.launcher.signals import hear_interrupts

LISTEN_EVERYWHERE = "/ip4/0.0.0.0/tcp/0"
"""Default of hivemind's command line too: every interface, a free port."""

PLATFORMS = {"cpu": "cpu", "cuda12": "cuda", "cuda13": "cuda", "tpu": "tpu"}
"""JAX's platform for each build of jax that ``make setup DEVICE=...`` installs."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ``ConfigError``.

    ``--config.FIELD=VALUE`` arguments are taken out before argparse sees them: it
    would count one with a space in its value among the values of the option before it.
    """

    def __init__(self, **kwargs):
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        """Parses, and arranges to die with the parent if told to.

        Returns:
            The namespace; ``overrides`` holds the ``--config.FIELD=VALUE`` arguments.

        Raises:
            ConfigError: Anything is wrong with the arguments.
        """
        args = sys.argv[1:] if args is None else list(args)
        overrides = [text for text in args if text.startswith("--config.")]
        rest = [text for text in args if not text.startswith("--config.")]
        parsed = super().parse_args(rest, namespace)
        if overrides and not hasattr(parsed, "config"):
            self.error(f"there is no experiment that {overrides[0]} could change")
        parsed.overrides = overrides
        if getattr(parsed, "die_with_parent", None) is not None:
            die_with_parent(parsed.die_with_parent)
        return parsed

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. See --help")


def add_experiment(parser: Parser, default: str | None = None) -> None:
    """Adds ``--config``; any ``--config.FIELD=VALUE`` is taken too."""
    parser.add_argument(
        "--config",
        required=default is None,
        default=default,
        metavar="FILE",
        help="experiment, for example configs/tiny.py. Override any field of it with "
        "--config.FIELD=VALUE, for example --config.swarm.num_stages=2",
    )


def experiment(args: argparse.Namespace) -> ExperimentConfig:
    """Loads the experiment that the arguments name.

    Raises:
        ConfigError: No such file or field, or a value that cannot work.
    """
    return load_config(args.config, args.overrides)


def experiment_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments that name the same experiment to another script."""
    return ["--config", args.config, *args.overrides]


def add_network(parser: Parser) -> None:
    """Adds ``--initial_peers``, ``--host_maddrs`` and the like, as in hivemind."""
    parser.add_argument(
        "--initial_peers",
        nargs="+",
        default=(),
        metavar="ADDR",
        help="addresses of peers that are already in the swarm: run_dht prints its own",
    )
    parser.add_argument(
        "--host_maddrs",
        nargs="+",
        default=(LISTEN_EVERYWHERE,),
        metavar="ADDR",
        help=f"where to listen (default: {LISTEN_EVERYWHERE})",
    )
    parser.add_argument(
        "--announce_maddrs",
        nargs="+",
        default=(),
        metavar="ADDR",
        help="what others are told to dial, if it is not where this process listens "
        "(behind a router that forwards a port)",
    )
    parser.add_argument(
        "--identity_path",
        metavar="FILE",
        help="private key of this peer, made if missing: keeps the peer id over "
        "restarts (default: a new identity)",
    )


def add_process(parser: Parser) -> None:
    """Adds what every process has: ``--ready_file``, ``--die_with_parent``."""
    parser.add_argument(
        "--ready_file",
        type=Path,
        metavar="FILE",
        help="JSON file that is written when this process can be reached",
    )
    add_die_with_parent(parser)


def add_checkpoint(parser: Parser, *, required: bool = True) -> None:
    """Adds ``--checkpoint`` and ``--step``."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=required,
        metavar="FOLDER",
        help="run folder, or the folder of its checkpoints",
    )
    parser.add_argument(
        "--step", type=int, help="of the checkpoint (default: the newest)"
    )


def add_start(parser: Parser) -> None:
    """Adds ``--checkpoint_dir`` to what trains without saving checkpoints."""
    parser.add_argument(
        "--checkpoint_dir",
        metavar="FOLDER",
        help="where scripts.import_weights has put the parameters that the experiment "
        "starts with (only with initial_weights)",
    )


def add_die_with_parent(parser: Parser) -> None:
    """Adds ``--die_with_parent``."""
    parser.add_argument(
        "--die_with_parent",
        type=int,
        metavar="PID",
        help="process id of the parent: be killed when it dies, however it dies",
    )


def add_worker(parser: Parser, name: str | None) -> None:
    """Adds what a stage server and a trainer have: ``--workdir``, ``--name``, ...

    Args:
        name: Default of ``--name``; None: the script makes one from the peer id.
    """
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="run folder, for metrics and logs",
    )
    parser.add_argument(
        "--name",
        default=name,
        help="name of this process in metrics and logs (default: "
        + (name or "made from the stage and the peer id")
        + ")",
    )
    add_device(parser)


def add_device(parser: Parser, default: str | None = None) -> None:
    """Adds ``--device``."""
    parser.add_argument(
        "--device",
        choices=sorted(PLATFORMS),
        default=default,
        help="what to compute on (default: "
        + (default or "the best that the installed jax finds")
        + ")",
    )


def add_tensorboard(parser: Parser) -> None:
    """Adds ``--tensorboard``."""
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write the steps' figures for TensorBoard, to WORKDIR/tensorboard",
    )


def add_cache_dir(parser: Parser) -> None:
    """Adds ``--cache_dir``."""
    parser.add_argument(
        "--cache_dir",
        type=Path,
        default=default_cache_dir(),
        metavar="FOLDER",
        help="prepared corpora and compiled programs, kept between runs "
        "(default: %(default)s)",
    )


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/swarm_jax``, or ``~/.cache/swarm_jax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / (
        "swarm_jax"
    )


def use_device(device: str | None) -> None:
    """Makes JAX compute on ``device``; None leaves the choice to JAX.

    It works before jax is imported and after, as long as jax has not touched a device.
    """
    if device is None:
        return
    os.environ["JAX_PLATFORMS"] = jax_platforms(device)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", jax_platforms(device))


def jax_platforms(device: str) -> str:
    """For JAX_PLATFORMS: the device's, and behind it the host's, for an optimizer."""
    platform = PLATFORMS[device]
    return platform if platform == "cpu" else f"{platform},cpu"


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when ``parent`` dies, by SIGKILL even.

    Exits at once if the parent is dead already: then nobody would tell us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"Parent process {parent} is gone, so this one leaves too.")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script: what its user can mend is one line on stderr, no traceback.

    Exit codes: what ``main`` returns (None is 0), 2 for ``ConfigError``,
    ``StartupError`` and ``CheckpointError``, 130 for Ctrl-C.
    """
    hear_interrupts()
    try:
        code = main()
    except (ConfigError, StartupError, CheckpointError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    # Else the end looks once more through all of jax and torch for garbage: seconds.
    gc.freeze()
    sys.exit(code)
