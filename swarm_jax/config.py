"""Typed experiment schema, loader with overrides, fingerprints.

One config file is one experiment: ``get_config() -> ExperimentConfig``. What belongs to
a process (stage, addresses, workdir, device) is a command-line flag, never a field.
"""

import ast
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm_jax.config_checks import at_least as _at_least
from swarm_jax.config_checks import one_of as _one_of
from swarm_jax.config_checks import positive as _positive
from swarm_jax.config_file import load_module
from swarm_jax.data_config import DataConfig, ValidationConfig
from swarm_jax.errors import ConfigError

OPTIMIZERS = ("adamw", "lamb", "adam")
SCHEDULES = ("cosine", "linear", "constant")
WIRES = ("float32", "bfloat16", "float64", "int8", "dynamic8")
ALLREDUCE_WIRES = ("float32", "float16", "int8")
ON_NONFINITE = ("stop", "skip_step")
WINDOWS = ("fixed", "auto")
REBALANCING = ("gain", "queue", "off")
REMATS = (
    "everything_saveable",
    "dots_with_no_batch_dims_saveable",
    "nothing_saveable",
)


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer with linear warm-up, and clipping over all stages.

    Attributes:
        name: "adamw" (Loshchilov & Hutter 2019), "adam", or "lamb" (You et al. 2020).
        learning_rate: Peak, reached after ``warmup_steps``.
        warmup_steps: Linear from 0.
        schedule: What follows: "cosine", "linear", or "constant" at the peak.
        final_learning_rate: At the experiment's last step, unless it is constant.
        beta1, beta2, epsilon: As in Adam (Kingma & Ba 2015, algorithm 1).
        weight_decay: Decoupled; of matrices and tables only. Adam has none.
        clip_norm: Global norm, over all stages, above which gradients are scaled down;
            None for no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    schedule: str = "cosine"
    final_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self):
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _one_of("optimizer.schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "final_learning_rate", "weight_decay"):
            _at_least(f"optimizer.{name}", getattr(self, name), 0)
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("beta1", "beta2"):
            if not 0 <= (beta := getattr(self, name)) < 1:
                raise ConfigError(f"optimizer.{name}={beta}: use 0 or more, below 1")
        _positive("optimizer.epsilon", self.epsilon)
        if self.name == "adam" and self.weight_decay:
            decay = f"optimizer.weight_decay={self.weight_decay}"
            raise ConfigError(f"{decay}: 'adam' has none; use 0, or name='adamw'")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(
                f"optimizer.clip_norm={self.clip_norm}: use a positive number, or None "
                "for no clipping"
            )


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the swarm saves its state. In no fingerprint.

    Attributes:
        every_steps: Steps between two checkpoints; 0 for none. The last step is saved
            too.
        keep_last: How many of the newest checkpoints are kept.
        keep_every_steps: Checkpoints at multiples of this are kept for good; 0: none.
        timeout_s: Bound on the saving of one stage.
    """

    every_steps: int = 100
    keep_last: int = 3
    keep_every_steps: int = 0
    timeout_s: float = 600.0

    def __post_init__(self):
        _at_least("checkpoint.every_steps", self.every_steps, 0)
        _at_least("checkpoint.keep_last", self.keep_last, 1)
        _at_least("checkpoint.keep_every_steps", self.keep_every_steps, 0)
        if self.timeout_s <= 0:
            raise ConfigError(
                f"checkpoint.timeout_s={self.timeout_s}: use a positive number"
            )


@dataclass(kw_only=True, slots=True)
class SwarmConfig:
    """How the model is cut and what travels.

    Attributes:
        num_stages: Stages that the layers are cut into, balanced by FLOPs.
        layers_per_stage: Layers of each stage, if the balance is not wanted.
        microbatch_size: Sequences per microbatch (B).
        wire: How activations travel between peers: a dtype, "int8" (blockwise linear)
            or "dynamic8" (the 8-bit map of bitsandbytes).
        gradient_wire: The same for their gradients; None: as ``wire``.
        allreduce_wire: How gradient sums travel between stage peers at a step's close:
            "float32" (exact), "float16" or "int8" (``net/parts.py``).
        on_nonfinite: "stop" the run, or "skip_step", when the model itself gives
            non-finite values.
        delayed_updates: Whether a step's gradients are at the parameters before the
            last update, always and everywhere. Then its microbatches run while the
            step before is closed. Another algorithm: plain training has it, too.
    """

    num_stages: int = 3
    layers_per_stage: tuple[int, ...] | None = None
    microbatch_size: int = 4
    wire: str = "float32"
    gradient_wire: str | None = None
    allreduce_wire: str = "float32"
    on_nonfinite: str = "stop"
    delayed_updates: bool = False

    def __post_init__(self):
        _at_least("swarm.num_stages", self.num_stages, 1)
        _at_least("swarm.microbatch_size", self.microbatch_size, 1)
        _one_of("swarm.wire", self.wire, WIRES)
        if self.gradient_wire is not None:
            _one_of("swarm.gradient_wire", self.gradient_wire, WIRES)
        _one_of("swarm.allreduce_wire", self.allreduce_wire, ALLREDUCE_WIRES)
        _one_of("swarm.on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        if self.layers_per_stage is not None:
            self.layers_per_stage = tuple(self.layers_per_stage)
            if len(self.layers_per_stage) != self.num_stages:
                raise ConfigError(
                    f"swarm.layers_per_stage={self.layers_per_stage} names "
                    f"{len(self.layers_per_stage)} stages, swarm.num_stages is "
                    f"{self.num_stages}: make them agree"
                )

    @property
    def wires(self) -> tuple[str, str]:
        """How activations travel, and how their gradients do."""
        return self.wire, self.gradient_wire or self.wire


@dataclass(kw_only=True, slots=True)
class RebalancingConfig:
    """When peers change their stage (``core/rebalancing.py``).

    Attributes:
        strategy: "gain" (moves that make the slowest stage faster), "queue" (the
            paper's) or "off".
        period_s: How often it is decided who moves. For "queue" not below the time
            that a migration takes, or it moves several where one was missing.
        gain_threshold: Least rise of the swarm's throughput, as a share of it, for
            which peers are moved.
        measurement_error: Relative standard deviation of one peer's measured
            throughput. A gain that such errors could feign moves nobody.
        same_speed: Peers whose speeds differ by no more than this factor from their
            median count as equally fast.
        moving_share: Largest share of all peers that is sent away in one period.
        migration_s: What a migration is expected to take: drain, download, compile.
        rescue_after_s: How long a stage must have been down to one peer before it is
            given another: who is replaced anyway is there by then.
        horizon_s: How long an allocation is expected to be of use, until peers come
            and go again. Moves that would not pay within it are not made.
    """

    strategy: str = "gain"
    period_s: float = 10.0
    gain_threshold: float = 0.005
    measurement_error: float = 0.05
    same_speed: float = 1.4
    moving_share: float = 0.25
    migration_s: float = 60.0
    rescue_after_s: float = 10.0
    horizon_s: float = 600.0

    def __post_init__(self):
        _one_of("tuning.rebalancing.strategy", self.strategy, REBALANCING)
        _positive("tuning.rebalancing.period_s", self.period_s)
        _at_least("tuning.rebalancing.gain_threshold", self.gain_threshold, 0)
        _at_least("tuning.rebalancing.measurement_error", self.measurement_error, 0)
        _at_least("tuning.rebalancing.same_speed", self.same_speed, 1)
        _positive("tuning.rebalancing.moving_share", self.moving_share)
        _at_least("tuning.rebalancing.migration_s", self.migration_s, 0)
        _at_least("tuning.rebalancing.rescue_after_s", self.rescue_after_s, 0)
        _positive("tuning.rebalancing.horizon_s", self.horizon_s)


@dataclass(kw_only=True, slots=True)
class TuningConfig:
    """Timeouts, windows and periods. In no fingerprint: peers may differ in them.

    Attributes:
        microbatches_in_flight: How many microbatches a trainer keeps in the swarm.
        window: "fixed" keeps that many; "auto" as many, up to that bound, as the
            throughput rewards (``core/window.py``): it follows latency and bandwidth.
        max_queue: Microbatches a stage server takes in before it answers BUSY.
        heartbeat_s: Period of heartbeats; a peer silent for three of them is left.
        relay_timeout_s: Time budget of a microbatch, there and back.
        hop_budget_s: Nothing is sent with less budget than this.
        control_timeout_s: Bound on collect, commit and other small calls.
        allreduce_timeout_s: Bound on one round of all-reduce.
        directory_refresh_s: How often peers publish and read records.
        directory_expiry_s: How long a record outlives its peer.
        lease_s: How long a trainer leads without renewing.
        ban_s: First ban of a peer that failed; doubles with each failure.
        max_ban_s: Longest ban.
        max_message_bytes: Larger messages are refused.
        join_buffer_bytes: Host memory of a joining peer for the gradients of the steps
            that the swarm takes meanwhile.
        residual_bytes: Device memory of a stage server for what its microbatches keep
            between forward and backward; those that find none left compute forward
            twice. None: what the device has left; on a CPU a quarter of main memory:
            set it if several peers share one CPU's.
        remat: What a block of a stage keeps of its forward pass for its backward pass,
            which computes the rest again; by the names of ``jax.checkpoint_policies``:
            "everything_saveable" (but what is cheap to do again),
            "dots_with_no_batch_dims_saveable" (products with its matrices) or
            "nothing_saveable" (its input). Results are equal but for rounding.
        offload_optimizer: Whether a stage server with an accelerator has its parameters
            and optimizer state in main memory, and updates them there: more fits the
            device, and updates take longer. Peers of a stage that differ in it drift
            apart in the last bits, as devices of two kinds do.
        drain_timeout_s: How long a peer that was told to leave tries to hand over.
        lost_stage_s: How long a stage's state must be missing before a run that may be
            started again is.
        same_host: Whether peers of one user on one host send each other tensors past
            libp2p.
        rebalancing: When peers change their stage.
    """

    microbatches_in_flight: int = 12
    window: str = "fixed"
    max_queue: int = 16
    heartbeat_s: float = 1.0
    relay_timeout_s: float = 120.0
    hop_budget_s: float = 2.0
    control_timeout_s: float = 5.0
    allreduce_timeout_s: float = 30.0
    directory_refresh_s: float = 1.0
    directory_expiry_s: float = 6.0
    lease_s: float = 6.0
    ban_s: float = 1.0
    max_ban_s: float = 30.0
    max_message_bytes: int = 1 << 30
    join_buffer_bytes: int = 4 << 30
    residual_bytes: int | None = None
    remat: str = "everything_saveable"
    offload_optimizer: bool = False
    drain_timeout_s: float = 25.0
    lost_stage_s: float = 30.0
    same_host: bool = True
    rebalancing: RebalancingConfig = field(default_factory=RebalancingConfig)

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name != "residual_bytes" and type(value) in (int, float):
                _positive(f"tuning.{entry.name}", value)
        if self.residual_bytes is not None:
            _at_least("tuning.residual_bytes", self.residual_bytes, 0)
        _one_of("tuning.window", self.window, WINDOWS)
        _one_of("tuning.remat", self.remat, REMATS)


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """One experiment.

    Attributes:
        run_id: Name of the run; part of every directory key.
        seed: Seed of initialisation and data order.
        steps: Optimizer steps to take.
        initial_weights: Digest of imported parameters to start with; None: the seed's.
        model: A dataclass of ``models``; this module does not look inside it beyond
            ``num_layers``, ``vocab_size`` and ``tied_head``.
    """

    run_id: str
    seed: int = 0
    steps: int
    initial_weights: str | None = None
    model: Any
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self):
        if not self.run_id or not self.run_id.replace("_", "").isalnum():
            raise ConfigError(
                f"run_id={self.run_id!r}: use letters, digits and '_' (it becomes part "
                "of directory keys)"
            )
        _at_least("seed", self.seed, 0)
        _at_least("steps", self.steps, 1)

    def check(self) -> "ExperimentConfig":
        """Checks what no part can check alone; the loader calls it last."""
        if self.swarm.num_stages > self.model.num_layers:
            raise ConfigError(
                f"swarm.num_stages={self.swarm.num_stages} is more than "
                f"model.num_layers={self.model.num_layers}: each stage needs a layer. "
                f"Use --config.swarm.num_stages={self.model.num_layers} or fewer"
            )
        layers = self.swarm.layers_per_stage
        if layers and (sum(layers) != self.model.num_layers or min(layers) < 1):
            raise ConfigError(
                f"swarm.layers_per_stage={layers} must be positive and add up to "
                f"model.num_layers={self.model.num_layers}"
            )
        if self.data.target_batch_size % self.swarm.microbatch_size:
            raise ConfigError(
                f"data.target_batch_size={self.data.target_batch_size} is no multiple "
                f"of swarm.microbatch_size={self.swarm.microbatch_size}: a step must "
                "be whole microbatches"
            )
        if self.validation.sequences % self.swarm.microbatch_size:
            raise ConfigError(
                f"validation.sequences={self.validation.sequences} is no multiple of "
                f"swarm.microbatch_size={self.swarm.microbatch_size}"
            )
        # That of "gpt2" is known where its files are: at the trainer.
        sizes = {"bytes": 257, "bpe": self.data.bpe_vocab_size}
        needed = sizes.get(self.data.tokenizer, 0)
        if self.model.vocab_size < needed:
            raise ConfigError(
                f"model.vocab_size={self.model.vocab_size} is too small for "
                f"data.tokenizer={self.data.tokenizer!r}: use {needed} or more"
            )
        if self.optimizer.warmup_steps > self.steps:
            raise ConfigError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is more than "
                f"steps={self.steps}"
            )
        return self

    @property
    def microbatches_per_step(self) -> int:
        return self.data.target_batch_size // self.swarm.microbatch_size

    @property
    def tokens_per_step(self) -> int:
        return self.data.target_batch_size * self.model.sequence_length

    @property
    def tied_stages(self) -> frozenset[int]:
        """The first and the last stage, if each has a copy of one table."""
        is_apart = self.model.tied_head and self.swarm.num_stages > 1
        return frozenset({0, self.swarm.num_stages - 1} if is_apart else ())

    def model_fingerprint(self) -> str:
        """Names what is trained: model, start, optimizer, data. Guards checkpoints."""
        parts = ("seed", "steps", "initial_weights", "model", "optimizer", "data")
        return _fingerprint({k: v for k, v in to_dict(self).items() if k in parts})

    def swarm_fingerprint(self) -> str:
        """Names who can work together: the model, its partition and the wire."""
        return _fingerprint([self.model_fingerprint(), to_dict(self)["swarm"]])


def to_dict(config: Any) -> dict[str, Any]:
    """A config tree as dicts, lists and scalars; dataclasses name their class."""
    return dataclasses.asdict(config)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """All leaf fields by dotted name: ``{"swarm.num_stages": 3, ...}``."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            found.update(leaves(value, f"{prefix}{entry.name}."))
        else:
            found[prefix + entry.name] = value
    return found


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Loads a config file and applies overrides.

    Args:
        path: Python file with ``get_config() -> ExperimentConfig``.
        overrides: ``--config.a.b=value`` strings; values are Python literals, or else
            taken as text. ``--config.a.b`` alone makes a switch True.

    Raises:
        ConfigError: No such file or field, or a value that cannot work.
    """
    try:
        config = load_module(path).get_config()
        switches = {k for k, value in leaves(config).items() if type(value) is bool}
        values = dict(_parse(text, switches) for text in overrides)
        return override(config, values).check()
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def override(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Rebuilds a config tree with some leaves replaced; every part is checked again."""
    known = leaves(config)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            leaf = name.rsplit(".", 1)[-1]
            near = close or [
                k for k in known if difflib.get_close_matches(leaf, [k.split(".")[-1]])
            ]
            hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
            raise ConfigError(f"Unknown config field '{prefix}{name}'.{hint}")
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            inner = {
                name.split(".", 1)[1]: new
                for name, new in values.items()
                if name.startswith(entry.name + ".")
            }
            changes[entry.name] = override(value, inner, f"{prefix}{entry.name}.")
        elif entry.name in values:
            changes[entry.name] = _typed(prefix + entry.name, value, values[entry.name])
    return dataclasses.replace(config, **changes)


def _typed(name: str, old: Any, new: Any) -> Any:
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if isinstance(old, tuple) and isinstance(new, (str, list)):
        return (new,) if isinstance(new, str) else tuple(new)
    if old is not None and new is not None and type(old) is not type(new):
        raise ConfigError(
            f"Config field '{name}' is of type {type(old).__name__} (now {old!r}), "
            f"not {type(new).__name__}: {new!r}"
        )
    return new


def _parse(text: str, switches: Collection[str]) -> tuple[str, Any]:
    name, equals, value = text.removeprefix("--config.").partition("=")
    if not equals and name in switches:
        return name, True
    if not text.startswith("--config.") or not equals:
        raise ConfigError(f"Cannot read override {text!r}: write --config.FIELD=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _fingerprint(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
