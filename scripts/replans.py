"""Plans for a fleet as a report: for people, and the commands that carry one out."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from models.flops import layer_flops
from scripts.fleet import Fleet
from scripts.stages import stage_layers
from swarm_jax.config import ExperimentConfig
from swarm_jax.core.replanning import ROUNDING, Costs, Plan, replan
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import commands

ADDRESS = "ADDRESS"
"""Stands for what a bootstrap prints."""

ROWS = (
    ("as it is", "now"),
    ("this partition, peers where they help most", "same_partition"),
    ("proposed", "proposed"),
)


def report(
    config: ExperimentConfig,
    fleet: Fleet,
    *,
    num_stages: int | None,
    max_layers: int | None,
) -> dict[str, Any]:
    """What the fleet does now, could do with this partition, and with the best one.

    Args:
        num_stages: Of the proposal; None: whatever is best.
        max_layers: No stage gets more blocks; None: as many as is best, but where
            ``num_stages`` is open, no more than a stage has now: that is known to fit.

    Raises:
        ConfigError: There is no plan, for a reason that the message gives.
    """
    flops = layer_flops(config.model)
    num_layers = config.model.num_layers
    costs = Costs(flops.block, num_layers, flops.embedding, flops.head)
    layers = tuple(stage.num_layers for stage in stage_layers(config))
    same = replan(costs, fleet.speeds, len(layers), layers_per_stage=layers)
    if num_stages is None:
        numbers = range(1, min(num_layers, len(fleet.speeds)) + 1)
        max_layers = max_layers or max(layers)
    else:
        numbers = range(num_stages, num_stages + 1)
    plans = [replan(costs, fleet.speeds, n, max_layers=max_layers) for n in numbers]
    proposed = _best([plan for plan in plans if plan is not None])
    if proposed is None:
        raise ConfigError(_reason(num_layers, fleet, num_stages, max_layers))
    keeps = same is not None and len(layers) in numbers
    if keeps and (max_layers is None or max(layers) <= max_layers):
        proposed = _best([proposed, same], first=same)
    return {
        "unit": fleet.unit,
        "speeds": dict(fleet.speeds),
        "now": fleet.stages and _served(fleet, layers, costs),
        "same_partition": same and _described(same),
        "proposed": _described(proposed),
    }


def instructions(
    args: argparse.Namespace, config: ExperimentConfig, plan: dict[str, Any]
) -> dict[str, list[str]]:
    """How to start a swarm as planned: a command for each peer, and one for a trainer.

    Args:
        args: Of the script: what names the experiment, the folders and the swarm.
    """
    layers = tuple(plan["layers_per_stage"])
    partition = {
        "--config.swarm.num_stages": f"{len(layers)}",
        "--config.swarm.layers_per_stage": str(layers).replace(" ", ""),
    }
    overrides = [f"{field}={value}" for field, value in partition.items()]
    others = [o for o in args.overrides if o.partition("=")[0] not in partition]
    experiment = ["--config", args.config, *others, *overrides]
    address = args.initial_peers or [ADDRESS]
    workdir = str(args.workdir or Path("runs") / config.run_id)
    folder = ["--checkpoint_dir", args.checkpoint_dir] if args.checkpoint_dir else []
    servers = [
        f"{commands.server_command(experiment, stage, address, workdir)} "
        f"{shlex.join(['--name', peer, *folder])}"
        for stage, peers in enumerate(plan["peers"])
        for peer in peers
    ]
    trainer = commands.trainer_command(experiment, address, workdir)
    return {"overrides": overrides, "commands": [*servers, trainer]}


def how_to_start(found: dict[str, Any]) -> str:
    """The plan's commands for people."""
    return "\n".join(
        [
            f"The newest checkpoint of all stages is of step {found['step']}.",
            "Nothing in it is converted: layers are placed anew as they are restored.",
            "Stop all but the bootstrap; start the swarm, and a bootstrap if there is",
            f"none ({ADDRESS} is what it prints), with",
            f"  {shlex.join(found['overrides'])}",
            "",
            *found["commands"],
        ]
    )


def table(found: dict[str, Any]) -> Table:
    """The plans side by side; throughput is that of the slowest stage."""
    unit = found["unit"]
    shown = Table("", "layers", "peers of each stage", f"throughput, {unit}", "at most")
    for label, key in ROWS:
        if plan := found[key]:
            peers = "\n".join(
                f"{stage}: {', '.join(names) or 'none'} ({_number(throughput)})"
                for stage, (names, throughput) in enumerate(
                    zip(plan["peers"], plan["throughputs"], strict=True)
                )
            )
            shown.add_row(
                label,
                "+".join(map(str, plan["layers_per_stage"])),
                peers,
                _number(plan["throughput"]),
                _number(plan["at_most"]) if "at_most" in plan else "",
            )
    shown.caption = "at most: what the best plan for as many stages can reach"
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _best(plans: Sequence[Plan], first: Plan | None = None) -> Plan | None:
    """The fastest; of equally fast ones ``first``, else the one of fewest stages."""
    best = first
    for plan in plans:
        if best is None or plan.throughput > best.throughput * (1 + ROUNDING):
            best = plan
    return best


def _described(plan: Plan) -> dict[str, Any]:
    return {
        "layers_per_stage": list(plan.layers_per_stage),
        "peers": [list(peers) for peers in plan.peers],
        "throughputs": list(plan.throughputs),
        "throughput": plan.throughput,
        "at_most": plan.throughput * (1 + plan.shortfall),
    }


def _served(fleet: Fleet, layers: Sequence[int], costs: Costs) -> dict[str, Any]:
    throughputs = [
        sum(fleet.speeds[peer] for peer in peers) / share
        for peers, share in zip(fleet.stages, costs.shares(layers), strict=True)
    ]
    return {
        "layers_per_stage": list(layers),
        "peers": [list(peers) for peers in fleet.stages],
        "throughputs": throughputs,
        "throughput": min(throughputs),
    }


def _reason(
    num_layers: int, fleet: Fleet, num_stages: int | None, max_layers: int | None
) -> str:
    peers = len(fleet.speeds)
    if num_stages is not None and num_stages > peers:
        return (
            f"{num_stages} stages need as many peers, and there are {peers}: add some, "
            f"or use --num_stages {peers} or fewer"
        )
    if num_stages is not None and num_stages > num_layers:
        return (
            f"--num_stages {num_stages}: the model has {num_layers} blocks, and each "
            "stage needs one"
        )
    stages = num_stages or min(peers, num_layers)
    return (
        f"{stages} stages of at most {max_layers} blocks cannot hold the model's "
        f"{num_layers}: add peers, or let a stage have more blocks (--max_layers)"
    )
