"""Options of ``scripts.benchmark`` that one measurement alone has."""

import argparse

from swarm_jax.config import ALLREDUCE_WIRES, REMATS
from swarm_jax.launcher import mesh_option
from swarm_jax.launcher.relay_cases import WIRES

MODELS = ("base", "xxlarge", "gpt3", "ours")


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
        default=list(REMATS),
        help="values of tuning.remat to compare (default: all)",
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
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="which sizes"
    )
    wan.add_argument(
        "--rtt_ms",
        type=float,
        nargs="+",
        metavar="MS",
        help="round trips between peers (default: 0 10 50 100 200; of close: 0)",
    )
    wan.add_argument(
        "--tflops",
        type=float,
        nargs="+",
        default=[15.0, 30.0],
        metavar="T",
        help="speeds of the accelerators, in 10^12 FLOP/s (default: 15 30)",
    )
    wan.add_argument(
        "--stages", type=int, default=3, metavar="N", help="in a row (default: 3)"
    )
    wan.add_argument(
        "--in_flight",
        type=int,
        metavar="N",
        help="microbatches in the swarm (default: four times as many as fill it)",
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
        default=[100, 1000],
        metavar="MB",
        help="sizes of a stage, in 10^6 bytes of float32 (default: 100 1000)",
    )
    close.add_argument(
        "--peers",
        type=int,
        nargs="+",
        default=[2, 4],
        metavar="N",
        help="members of the all-reduce (default: 2 4)",
    )
    close.add_argument(
        "--wires",
        nargs="+",
        choices=ALLREDUCE_WIRES,
        default=list(ALLREDUCE_WIRES),
        help="how the gradient travels",
    )
    close.add_argument(
        "--link_mbps",
        type=float,
        default=1000.0,
        metavar="R",
        help="links, each way, in 10^6 bit/s (default: 1000)",
    )
