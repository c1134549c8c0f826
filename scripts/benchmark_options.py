"""Options of ``scripts.benchmark`` that one measurement alone has."""

import argparse

from swarm_jax.config import ALLREDUCE_WIRES, REMATS
from swarm_jax.launcher import mesh_option
from swarm_jax.launcher.relay_cases import WIRES

MODELS = ("base", "xxlarge", "gpt3", "ours")

DEFAULTS = {
    "wan": {"models": MODELS, "tflops": [15.0, 30.0], "stages": 3},
    "close": {
        "parameters_mb": [100, 1000],
        "peers": [2, 4],
        "wires": ALLREDUCE_WIRES,
        "link_mbps": 1000.0,
    },
    "delayed": {
        "models": ["ours"],
        "tflops": [15.0],
        "rtt_ms": [0.0, 100.0],
        "stages": 2,
        "parameters_mb": [100],
        "peers": [2],
        "wires": ["float16"],
        "link_mbps": 500.0,
    },
}
"""Of options that several measurements have."""


def fill_in(args: argparse.Namespace) -> None:
    """Gives the options that were left out the measurement's own values."""
    for name, value in DEFAULTS.get(args.what, {}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def add_all(parser: argparse.ArgumentParser) -> None:
    """Adds a group for each measurement that has some."""
    add_checkpoints(parser)
    add_codecs(parser)
    add_stage(parser)
    add_relay(parser)
    add_wan(parser)
    add_close(parser)
    add_delayed(parser)


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument(
        "--state_mb",
        type=int,
        nargs="+",
        default=[100, 1000],
        metavar="MB",
        help="sizes of state to save and restore, in 10^6 bytes (default: 100 1000)",
    )


def add_codecs(parser: argparse.ArgumentParser) -> None:
    codecs = parser.add_argument_group("codecs")
    codecs.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=[1, 2048, 4096],
        metavar=("B", "L", "D"),
        help="sequences, tokens and width of what is encoded (default: 1 2048 4096)",
    )


def add_stage(parser: argparse.ArgumentParser) -> None:
    stage = parser.add_argument_group("stage")
    stage.add_argument(
        "--stage", type=int, default=0, help="of the experiment (default: %(default)s)"
    )
    stage.add_argument(
        "--peak_tflops",
        type=float,
        help="of the device, to say how much of it is used (default: what is known of "
        "its name, for bfloat16)",
    )
    stage.add_argument(
        "--remat",
        nargs="+",
        choices=REMATS,
        help="values of tuning.remat to compare (default: all; with --mesh the "
        "experiment's)",
    )
    stage.add_argument(
        "--profile",
        action="store_true",
        help="say which kernels take the time of a pass there and back, and of the "
        "update (not with --mesh)",
    )
    mesh_option.add_argument(
        stage,
        nargs="+",
        default=[],
        help="compare one device with peers that have several: data=N divides a "
        "microbatch's sequences (--config.swarm.microbatch_size), model=N each block",
    )


def add_relay(parser: argparse.ArgumentParser) -> None:
    relay = parser.add_argument_group("relay")
    relay.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the relay (default: all that fit the device)",
    )
    relay.add_argument(
        "--peer_wires",
        nargs="+",
        choices=WIRES,
        default=list(WIRES),
        help="of hivemind: the fastest one is compared with (default: all)",
    )
    relay.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="how long the relay's limit and peer, and each row of wan, are measured "
        "(default: %(default)s)",
    )


def add_wan(parser: argparse.ArgumentParser) -> None:
    wan = parser.add_argument_group("wan")
    wan.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        help="which sizes (default: all; of delayed: ours)",
    )
    wan.add_argument(
        "--rtt_ms",
        type=float,
        nargs="+",
        metavar="MS",
        help="round trips between peers (default: 0 10 50 100 200; of close: 0; of "
        "delayed: 0 100)",
    )
    wan.add_argument(
        "--tflops",
        type=float,
        nargs="+",
        metavar="T",
        help="speeds of the accelerators, in 10^12 FLOP/s (default: 15 30; of delayed: "
        "15)",
    )
    wan.add_argument(
        "--stages",
        type=int,
        metavar="N",
        help="in a row (default: 3; of delayed: 2)",
    )
    wan.add_argument(
        "--in_flight",
        type=int,
        metavar="N",
        help="microbatches in the swarm (default: six times as many as fill it, and "
        "16; of delayed: twice, and 4 for each peer of a stage)",
    )
    wan.add_argument(
        "--dilation",
        type=float,
        metavar="K",
        help="factor by which all is slowed down (default: as this machine needs; "
        "of close: 1)",
    )


def add_close(parser: argparse.ArgumentParser) -> None:
    close = parser.add_argument_group("close")
    close.add_argument(
        "--parameters_mb",
        type=int,
        nargs="+",
        metavar="MB",
        help="sizes of a stage, in 10^6 bytes of float32 (default: 100 1000; of "
        "delayed: 100)",
    )
    close.add_argument(
        "--peers",
        type=int,
        nargs="+",
        metavar="N",
        help="members of the all-reduce (default: 2 4; of delayed: 2)",
    )
    close.add_argument(
        "--wires",
        nargs="+",
        choices=ALLREDUCE_WIRES,
        help="how the gradient travels (default: all; of delayed: float16)",
    )
    close.add_argument(
        "--link_mbps",
        type=float,
        metavar="R",
        help="links, each way, in 10^6 bit/s (default: 1000; of delayed: 500)",
    )


def add_delayed(parser: argparse.ArgumentParser) -> None:
    delayed = parser.add_argument_group("delayed")
    delayed.add_argument(
        "--microbatches",
        type=int,
        default=64,
        metavar="N",
        help="of a step, a power of two (default: %(default)s)",
    )
    delayed.add_argument(
        "--steps",
        type=int,
        default=4,
        metavar="N",
        help="that are timed in each run (default: %(default)s)",
    )
