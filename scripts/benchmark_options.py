"""Options of ``scripts.benchmark`` that one measurement alone has."""

import argparse

MODELS = ("base", "xxlarge", "gpt3", "ours")


def add_wan(parser: argparse.ArgumentParser) -> None:
    wan = parser.add_argument_group("wan")
    wan.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="which sizes"
    )
    wan.add_argument(
        "--rtt_ms",
        type=float,
        nargs="+",
        default=[0.0, 10.0, 50.0, 100.0, 200.0],
        metavar="MS",
        help="round trips between peers (default: 0 10 50 100 200)",
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
        "--stages", type=int, default=3, metavar="N", help="pipeline (default: 3)"
    )
    wan.add_argument(
        "--in_flight",
        type=int,
        metavar="N",
        help="microbatches in the swarm (default: half as many again as fill it)",
    )
    wan.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="how long each row is measured (default: 20)",
    )
    wan.add_argument(
        "--dilation",
        type=float,
        metavar="K",
        help="factor by which all is slowed down (default: as this machine needs)",
    )
