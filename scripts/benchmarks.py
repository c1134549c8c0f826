"""What ``scripts.benchmark`` measures, one function each.

They take the script's arguments, the experiment, a folder for what is written and a
console to report to; they return the report.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from swarm_jax.config import REMATS, load_config
from swarm_jax.errors import ConfigError
from swarm_jax.launcher import (
    benchmark,
    checkpoint_times,
    flags,
    imports,
    mesh_option,
    relay_bench,
    relay_cases,
)
from swarm_jax.launcher.environment import gpu_cards
from swarm_jax.launcher.processes import ProcessDied
from swarm_jax.launcher.runs import COMPILING_STEPS
from swarm_jax.metrics import write_json

TRAINING = ("local", "checkpoints", "relay")
"""What runs steps of the experiment."""


def check(args, config) -> None:
    """Raises:
    ConfigError: There is nothing to measure.
    """
    if args.repeats < 1:
        raise ConfigError(f"--repeats {args.repeats}: use 1 or more")
    if min(args.state_mb) < 1:
        raise ConfigError(f"--state_mb {min(args.state_mb)}: use 1 or more")
    if args.what == "codecs":
        _check_codecs(args)
    if args.peak_tflops is not None and args.peak_tflops <= 0:
        raise ConfigError(f"--peak_tflops {args.peak_tflops}: use a positive number")
    if args.what == "stage" and not 0 <= args.stage < config.swarm.num_stages:
        raise ConfigError(
            f"--stage {args.stage}: this experiment has stages 0 to "
            f"{config.swarm.num_stages - 1}"
        )
    for shape in args.mesh:
        mesh_option.check(shape, config)
    if args.mesh and args.what != "stage":
        raise ConfigError(f"--mesh is for stage; {args.what} does not look at it")
    if args.profile and (args.mesh or args.what != "stage"):
        raise ConfigError("--profile is for stage, without --mesh")
    if args.seconds <= 0:
        raise ConfigError(f"--seconds {args.seconds:g}: use more than 0")
    if args.what == "wan":
        _check_wan(args)
    if args.what == "close":
        _check_close(args)
    if args.what == "delayed":
        _check_wan(args)
        _check_close(args)
        _check_delayed(args)
    if args.what in TRAINING and config.steps <= COMPILING_STEPS:
        raise ConfigError(
            f"steps={config.steps}: the first {COMPILING_STEPS} are not counted, so "
            f"use --config.steps={COMPILING_STEPS + 1} or more"
        )
    if args.what in ("checkpoints", "relay") and config.swarm.num_stages < 2:
        needs = "a move" if args.what == "checkpoints" else "a relay"
        raise ConfigError(f"swarm.num_stages=1: {needs} needs two stages or more")


def _check_codecs(args) -> None:
    _runs_no_experiment(args, "--shape B L D")
    batch, length, width = args.shape
    if min(batch, length) < 1 or width < 2:
        raise ConfigError(
            f"--shape {batch} {length} {width}: use 1 or more, and 2 or more for D"
        )


def _check_wan(args) -> None:
    _runs_no_experiment(args, "--models, --rtt_ms, --tflops")
    if args.stages < 2:
        raise ConfigError(f"--stages {args.stages}: a link needs two stages or more")
    least = {
        "--tflops": min(args.tflops),
        "--in_flight": args.in_flight,
    }
    for option, value in least.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{option} {value:g}: use a positive number")
    _check_links(args)


def _check_close(args) -> None:
    _runs_no_experiment(args, "--parameters_mb, --peers, --wires")
    if min(args.peers) < 2:
        raise ConfigError(f"--peers {min(args.peers)}: a mean needs two or more")
    if min(args.parameters_mb) < 1:
        least = min(args.parameters_mb)
        raise ConfigError(f"--parameters_mb {least}: use 1 or more")
    if args.link_mbps <= 0:
        raise ConfigError(f"--link_mbps {args.link_mbps:g}: use a positive number")
    _check_links(args)


def _check_delayed(args) -> None:
    if args.microbatches < 1 or args.microbatches & (args.microbatches - 1):
        raise ConfigError(f"--microbatches {args.microbatches}: use a power of two")
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps}: use 1 or more")


def _check_links(args) -> None:
    if args.rtt_ms is not None and min(args.rtt_ms) < 0:
        raise ConfigError(f"--rtt_ms {min(args.rtt_ms):g}: use 0 or more")
    if args.dilation is not None and args.dilation < 1:
        raise ConfigError(f"--dilation {args.dilation:g}: use 1 or more")


def _runs_no_experiment(args, instead: str) -> None:
    if args.overrides:
        raise ConfigError(
            f"{args.what} runs no experiment, so {args.overrides[0]} would change "
            f"nothing: give {instead} instead"
        )


def local(args, config, folder: Path, console: Console) -> dict[str, Any]:
    experiment = flags.experiment_arguments(args)
    report = benchmark.swarm_against_single(
        experiment, args.device, args.repeats, folder, console
    )
    console.print(benchmark.report_table(report))
    return report


def checkpoints(args, config, folder: Path, console: Console) -> dict[str, Any]:
    with imports.many():
        from scripts.store_speed import store_speed
    experiment, repeats = flags.experiment_arguments(args), args.repeats
    where = experiment, args.device, repeats
    tokens = config.tokens_per_step
    report = {
        "store": [store_speed(folder / f"{m}", m, repeats) for m in args.state_mb],
        "stall": checkpoint_times.save_stall(*where, tokens, folder, console),
        "migrations": checkpoint_times.migrations(*where, folder, console),
    } | benchmark.circumstances(experiment, args.device)
    console.print(checkpoint_times.times_table(report))
    return report


def codecs(args, config, folder: Path, console: Console) -> dict[str, Any]:
    flags.use_device(args.device)
    with imports.many():
        import jax

        from scripts.codec_speed import codec_figures, codec_table
    figures = codec_figures(args.shape, args.repeats)
    console.print(codec_table(figures, args.shape))
    return {
        "shape": args.shape,
        "repeats": args.repeats,
        "codecs": figures,
        "device_kind": jax.devices()[0].device_kind,
    } | benchmark.machine(args.device)


def relay(args, config, folder: Path, console: Console) -> dict[str, Any]:
    platform = flags.PLATFORMS[args.device]
    cards = gpu_cards(os.environ) if platform == "cuda" else []
    cases = relay_cases.choose(args.cases, len(cards))
    report = {
        "rows": [],
        "failed": [],
        "missing": [case.name for case in cases],
        "overrides": args.overrides,
        "config": args.config,
    }
    report |= benchmark.machine(args.device)
    report |= {name: version(name) for name in ("torch", "hivemind", "numpy")}
    for case in cases:
        overrides = [*case.overrides, *args.overrides]
        bench = relay_bench.RelayBench(
            case=case,
            config=load_config(args.config, overrides),
            experiment=["--config", args.config, *overrides],
            device=args.device,
            cards=cards[: case.cards],
            cache_dir=flags.default_cache_dir(),
            seconds=args.seconds,
            folder=folder / case.name,
            peer_wires=args.peer_wires,
        )
        before = report["rows"]
        try:
            for rows in bench.rounds(args.repeats, console):
                report["rows"] = before + rows
                _save(args, report)
        except (ProcessDied, ConfigError) as error:
            report["failed"].append(case.name)
            console.print(f"{case.name}: {error}")
        report["missing"].remove(case.name)
        _save(args, report)
    console.print(relay_bench.relay_table(report["rows"]))
    return report


def _save(args, report: dict[str, Any]) -> None:
    """Before all is known: what is measured takes long, and may be cut short."""
    if args.json:
        write_json(args.json, report)


def data(args, config, folder: Path, console: Console) -> dict[str, Any]:
    with imports.many():
        from scripts.data_speed import data_speed
    return data_speed(args, config, folder, console)


def stage(args, config, folder: Path, console: Console) -> dict[str, Any]:
    flags.use_device(args.device)
    with imports.many():
        from scripts import mesh_speed, wiring
        from scripts.kernel_times import kernel_table
        from scripts.stage_speed import stage_figures, stage_tables
    wiring.prepare_jax(config)
    if args.mesh:
        about = {"experiment": flags.experiment_arguments(args)}
        about |= benchmark.machine(args.device)
        return mesh_speed.mesh_figures(args, config, about, console)
    figures = stage_figures(
        config,
        args.stage,
        args.repeats,
        args.peak_tflops,
        args.remat or REMATS,
        profile=args.profile,
    )
    for table in stage_tables(figures):
        console.print(table)
    if args.profile:
        console.print(kernel_table(figures["profiles"]))
    experiment = {"experiment": flags.experiment_arguments(args)}
    return (
        figures
        | {"repeats": args.repeats}
        | experiment
        | benchmark.machine(args.device)
    )


def wan(args, config, folder: Path, console: Console) -> dict[str, Any]:
    flags.use_device(args.device)
    with imports.many():
        from scripts.wan import wan_figures, wan_table
    about = {"stages": args.stages} | benchmark.machine(args.device)
    rows = wan_figures(args, console, lambda rows: _save(args, about | {"rows": rows}))
    console.print(wan_table(rows))
    return about | {"rows": rows}


def close(args, config, folder: Path, console: Console) -> dict[str, Any]:
    flags.use_device(args.device)
    with imports.many():
        from scripts.close_speed import close_figures, close_tables
    about = {"repeats": args.repeats} | benchmark.machine(args.device)
    report = close_figures(args, console, lambda found: _save(args, about | found))
    for table in close_tables(report):
        console.print(table)
    return about | report


def delayed(args, config, folder: Path, console: Console) -> dict[str, Any]:
    with imports.many():
        from scripts.delayed_speed import delayed_figures, delayed_table
    about = {"repeats": args.repeats} | benchmark.machine(args.device)
    rows = delayed_figures(
        args, console, lambda rows: _save(args, about | {"rows": rows})
    )
    console.print(delayed_table(rows))
    return about | {"rows": rows}
