"""Conventions of the whole repository: style, configs, documented commands."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scripts import wiring
from swarm_jax.config import load_config

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("configs", "models", "scripts", "swarm_jax", "tests")
SOURCES = sorted(path for top in FOLDERS for path in (REPOSITORY / top).rglob("*.py"))
CONFIGS = sorted((REPOSITORY / "configs").glob("[a-z]*.py"))
SCRIPTS = [
    path
    for path in (REPOSITORY / "scripts").glob("*.py")
    if "__main__" in path.read_text()
]
"""Those that are started with ``python -m``."""

MAX_LINES = 500
MAX_SCRIPT_LINES = 120


def readme_commands() -> list[str]:
    """Commands of ours in the README's shell blocks."""
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removesuffix(" &") for line in lines if "python -m scripts." in line]


@cache
def help_of(module: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command):
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *FOLDERS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout


def test_sources_are_ascii_short_and_documented():
    found = []
    for path in SOURCES:
        text, name = path.read_text(), str(path.relative_to(REPOSITORY))
        limit = MAX_SCRIPT_LINES if path in SCRIPTS else MAX_LINES
        in_tests = name.startswith("tests/")
        if not text.isascii() and not in_tests:
            found.append(f"{name} is not ASCII")
        if len(text.splitlines()) > limit:
            found.append(f"{name} has more than {limit} lines")
        if text and not in_tests and ast.get_docstring(ast.parse(text)) is None:
            found.append(f"{name} has no docstring")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_builds_its_stages(path):
    config = load_config(path)
    stages = wiring.stage_layers(config)
    shape_BL = (config.swarm.microbatch_size, config.model.sequence_length)
    x = tokens_BL = jax.ShapeDtypeStruct(shape_BL, jnp.int32)
    for stage, layers in enumerate(stages):
        functions = wiring.make_functions(config, stage)
        params = jax.eval_shape(lambda functions=functions: functions.init(config.seed))
        if functions.is_last:
            loss = jax.eval_shape(functions.loss, params, x, tokens_BL)
            assert loss.shape == ()
        else:
            x = jax.eval_shape(functions.apply, params, x)
            width = config.model.width_after(sum(layers))
            assert x.shape == (*shape_BL, width)
    assert functions.is_last


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_its_command(path):
    named = re.findall(rf"--config configs/{path.stem}\.py", path.read_text())
    default = f'"configs/{path.stem}.py"'
    is_default = any(default in p.read_text() for p in SOURCES if "scripts" in p.parts)
    assert named or is_default


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_in_the_readme_parses(command):
    _, dash_m, module, *arguments = shlex.split(command)
    assert dash_m == "-m"
    options = [word for word in arguments if word.startswith("--")]
    overrides = [word for word in options if word.startswith("--config.")]
    documented = help_of(module)
    for option in set(options) - set(overrides):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", documented), option
    if "--config" in arguments:
        path = arguments[arguments.index("--config") + 1]
        load_config(REPOSITORY / path, overrides)


def test_the_readme_documents_every_script_and_only_files_that_exist():
    text = (REPOSITORY / "README.md").read_text()
    for path in SCRIPTS:
        assert f"python -m scripts.{path.stem}" in text
    for name in re.findall(
        r"`((?:configs|models|swarm_jax|tests|scripts)/[^`]+)`", text
    ):
        assert (REPOSITORY / name).exists(), name
