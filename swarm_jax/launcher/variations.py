"""Which runs a sweep consists of.

A config file may offer ``variants() -> dict[str, ExperimentConfig]``: whole configs by
name, each made from ``get_config()`` by a few changes. ``--vary FIELD=VALUE,VALUE``
changes one field; several options give all combinations.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm_jax.config import ExperimentConfig, leaves, load_config
from swarm_jax.config_file import load_module
from swarm_jax.errors import ConfigError

ALL = "all"
SEED = "seed"
BRACKETS = {"(": ")", "[": "]", "{": "}"}
MAX_NAME = 200
"""Longest name of a run folder; file systems allow 255 bytes, logs add ``.log``."""


@dataclass(frozen=True, slots=True)
class Variation:
    """One run of a sweep.

    Attributes:
        label: What it varies; the same for runs that differ in their seed alone.
        name: Of its run folder.
        overrides: ``--config.FIELD=VALUE`` arguments that make it.
        config: What they make.
    """

    label: str
    name: str
    overrides: tuple[str, ...]
    config: ExperimentConfig


def make_variations(
    path: str | Path,
    overrides: Sequence[str],
    vary: Sequence[str],
    variants: str | None,
) -> list[Variation]:
    """All combinations of named variants and varied fields.

    Named variants alternate fastest, so that runs that start together differ in shape
    and later ones, with other seeds, find their programs compiled.

    Args:
        path: Config file.
        overrides: For all runs.
        vary: ``FIELD=VALUE,VALUE`` texts; values as in overrides.
        variants: Names with commas between them, "all", or None for the base alone.

    Raises:
        ConfigError: There is nothing to vary, a field is given twice, two runs would
            be the same, or a combination cannot work.
    """
    parsed = [parse_vary(text) for text in vary]
    given = [text.removeprefix("--config.").partition("=")[0] for text in overrides]
    for field, times in Counter([*given, *(field for field, _ in parsed)]).items():
        if times > 1:
            raise ConfigError(f"{field} is given twice: name it once, --vary or not")
    if not parsed and variants is None:
        raise ConfigError(
            "Nothing to vary: give --vary FIELD=VALUE,VALUE or --variants"
        )
    combinations = itertools.product(*([(f, v) for v in vs] for f, vs in parsed))
    named = _named_variants(path, variants)
    made = [
        _make(path, name, (*changes, *overrides), dict(values))
        for values in combinations
        for name, changes in named.items()
    ]
    for name, times in Counter(variation.name for variation in made).items():
        if times > 1:
            raise ConfigError(f"{times} runs would have the same run folder, {name}")
    return made


def parse_vary(text: str) -> tuple[str, list[str]]:
    """Reads ``FIELD=VALUE,VALUE``: commas inside brackets or quotes belong to a value.

    Raises:
        ConfigError: There is no field, no value, an empty one, or an open bracket.
    """
    field, equals, rest = text.partition("=")
    values = [value.strip() for value in _split(text, rest)]
    if not field or not equals or not all(values):
        raise ConfigError(
            f"--vary {text}: write FIELD=VALUE,VALUE, for example seed=1,2"
        )
    return field, values


def _split(text: str, rest: str) -> Iterator[str]:
    """Parts between the commas that are neither in brackets nor in quotes."""
    closing: list[str] = []
    part = ""
    for character in rest:
        quoted = bool(closing) and closing[-1] in "'\""
        if closing and character == closing[-1]:
            closing.pop()
        elif not quoted and character in "'\"":
            closing.append(character)
        elif not quoted and character in BRACKETS:
            closing.append(BRACKETS[character])
        if character == "," and not closing:
            yield part
            part = ""
        else:
            part += character
    if closing:
        raise ConfigError(f"--vary {text}: there is no closing {closing[-1]}")
    yield part


def _named_variants(
    path: str | Path, variants: str | None
) -> Mapping[str, Sequence[str]]:
    """The overrides that make each variant, by name; without names, one of none."""
    if variants is None:
        return {"": ()}
    module = load_module(path)
    if not hasattr(module, "variants"):
        raise ConfigError(f"{path} has no function variants(): use --vary")
    base, offered = leaves(module.get_config()), module.variants()
    names = list(offered) if variants == ALL else variants.split(",")
    for name in names:
        if name not in offered:
            raise ConfigError(
                f"{path} has no variant {name!r}. It has: {', '.join(offered)}"
            )
    return {
        name: [
            f"--config.{field}={value!r}"
            for field, value in leaves(offered[name]).items()
            if value != base[field]
        ]
        for name in names
    }


def _make(
    path: str | Path, variant: str, overrides: Sequence[str], values: dict[str, str]
) -> Variation:
    arguments = [f"--config.{field}={value}" for field, value in values.items()]
    try:
        config = load_config(path, [*overrides, *arguments])
    except ConfigError as error:
        raise ConfigError(f"{' '.join([variant, *arguments])}: {error}") from error
    parts = [variant] if variant else []
    parts += [f"{_short(f, values)}={v}" for f, v in values.items() if f != SEED]
    label = ",".join(parts) or config.run_id
    name = f"{label},seed={config.seed}" if SEED in values else label
    return Variation(label, _file_name(name), (*overrides, *arguments), config)


def _short(field: str, fields: Iterable[str]) -> str:
    """Its last part, unless another varied field has the same."""
    last = [name.rpartition(".")[2] for name in fields]
    short = field.rpartition(".")[2]
    return short if last.count(short) == 1 else field


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", text)[:MAX_NAME]
