"""Who may import whom. The arrows of the layers, held for every file."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TOP = ("configs", "models", "scripts", "swarm_jax")

ARROWS = {
    "swarm_jax/__init__.py": (),
    "swarm_jax/errors.py": (),
    "swarm_jax/config_checks.py": ("swarm_jax.errors",),
    "swarm_jax/data_config.py": ("swarm_jax.config_checks", "swarm_jax.errors"),
    "swarm_jax/config.py": (
        "swarm_jax.config_checks",
        "swarm_jax.config_file",
        "swarm_jax.data_config",
        "swarm_jax.errors",
    ),
    "swarm_jax/config_file.py": ("swarm_jax.errors",),
    "swarm_jax/metrics.py": ("swarm_jax.errors",),
    "swarm_jax/core/": ("swarm_jax.core", "swarm_jax.errors"),
    "swarm_jax/stage/": ("swarm_jax.stage", "swarm_jax.errors"),
    "swarm_jax/data/": (
        "swarm_jax.data",
        "swarm_jax.config",
        "swarm_jax.data_config",
        "swarm_jax.errors",
    ),
    "swarm_jax/net/": ("swarm_jax.net", "swarm_jax.errors"),
    "swarm_jax/net/hivemind_": ("swarm_jax.net", "swarm_jax.core", "swarm_jax.errors"),
    "swarm_jax/roles/": (
        "swarm_jax.roles",
        "swarm_jax.core",
        "swarm_jax.net.protocols",
        "swarm_jax.config",
        "swarm_jax.metrics",
        "swarm_jax.errors",
    ),
    "swarm_jax/sim/": (
        "swarm_jax.sim",
        "swarm_jax.core",
        "swarm_jax.roles",
        "swarm_jax.net.local",
        "swarm_jax.net.protocols",
        "swarm_jax.config",
        "swarm_jax.metrics",
        "swarm_jax.errors",
    ),
    "swarm_jax/launcher/": (
        "swarm_jax.launcher",
        "swarm_jax.config",
        "swarm_jax.config_file",
        "swarm_jax.metrics",
        "swarm_jax.errors",
    ),
    "models/": ("models",),
    "configs/": ("configs", "swarm_jax.config", "models.config"),
    "scripts/": TOP,
}
"""What of ours a file may import, by the longest beginning of its path that fits."""

OWNERS = {
    "hivemind": ("swarm_jax/net/hivemind_", "scripts/relay_peer"),
    "torch": (
        *("swarm_jax/net/hivemind_", "models/torch_"),
        *("scripts/train_pytorch.py", "scripts/relay_peer"),
    ),
    "swarm_jax.net.hivemind_": ("swarm_jax/net/hivemind_", "scripts/"),
    "models.torch_": (
        *("models/torch_", "scripts/train_pytorch.py"),
        "scripts/relay_peer",
    ),
    "flax": ("models/",),
    "safetensors": ("models/safetensors_files.py",),
    "transformers": (),
    "tensorflow": (),
}
"""Modules that only these files may import, whatever the arrows say."""

JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
CLOCKS_AND_CHANCE = ("time", "random", "secrets", "threading")

FORBIDDEN = {
    "swarm_jax/config_checks.py": JAX,
    "swarm_jax/data_config.py": JAX,
    "swarm_jax/config.py": JAX,
    "swarm_jax/metrics.py": JAX,
    "swarm_jax/errors.py": JAX,
    "swarm_jax/net/": JAX,
    "swarm_jax/roles/": JAX + CLOCKS_AND_CHANCE,
    "swarm_jax/launcher/": JAX,
    "swarm_jax/sim/": ("time", "threading"),
    "models/config.py": JAX,
    "configs/": JAX,
}
"""Modules of others that these files may not import."""

CORE_NEEDS_ONLY = frozenset(sys.stdlib_module_names) - set(CLOCKS_AND_CHANCE) | {
    "numpy",
    "swarm_jax",
}


def begins(module: str, prefixes) -> bool:
    """Whether a module is one of ``prefixes`` or inside one of them.

    A prefix that ends in "_" is the beginning of a name.
    """
    return any(
        module == prefix
        or module.startswith(prefix if prefix.endswith("_") else prefix + ".")
        for prefix in prefixes
    )


def imports(source: str) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            # "from swarm_jax import errors" is an arrow to swarm_jax.errors.
            if _is_package(node.module):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
    return found


def violations(path: str, source: str) -> list[str]:
    """Imports of a file that break a rule, each with the rule."""
    layer = max((p for p in ARROWS if path.startswith(p)), key=len, default=None)
    if layer is None:
        return [f"{path} is in no layer: add it to ARROWS"]
    found = []
    for module in sorted(imports(source)):
        if begins(module, TOP) and not begins(module, ARROWS[layer]):
            found.append(f"{path} imports {module}; {layer} may not")
        for owned, owners in OWNERS.items():
            if begins(module, [owned]) and not path.startswith(owners):
                found.append(f"{path} imports {module}; only {owners} may")
        for prefix, modules in FORBIDDEN.items():
            if path.startswith(prefix) and begins(module, modules):
                found.append(f"{path} imports {module}; {prefix} may not")
        if layer == "swarm_jax/core/" and module.split(".")[0] not in CORE_NEEDS_ONLY:
            found.append(f"{path} imports {module}; core needs stdlib and numpy only")
    return found


def _is_package(module: str) -> bool:
    return (REPOSITORY / module.replace(".", "/")).is_dir()


@pytest.mark.parametrize("top", TOP)
def test_every_import_is_an_allowed_arrow(top):
    files = sorted((REPOSITORY / top).rglob("*.py"))
    assert files
    found = []
    for file in files:
        path = str(file.relative_to(REPOSITORY))
        found += violations(path, file.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("swarm_jax/core/x.py", "import jax"),
        ("swarm_jax/core/x.py", "import time"),
        ("swarm_jax/core/x.py", "from swarm_jax import config"),
        ("swarm_jax/core/x.py", "from swarm_jax.net.protocols import Message"),
        ("swarm_jax/config.py", "import jax.numpy as jnp"),
        ("swarm_jax/stage/x.py", "from swarm_jax.roles.compute import Compute"),
        ("swarm_jax/stage/x.py", "from models import functional"),
        ("swarm_jax/roles/x.py", "def f():\n    import random"),
        ("swarm_jax/roles/x.py", "from time import monotonic"),
        ("swarm_jax/roles/x.py", "from swarm_jax.net import local"),
        ("swarm_jax/roles/x.py", "from swarm_jax.stage.codec import Codec"),
        ("swarm_jax/net/wire.py", "import hivemind.p2p"),
        ("swarm_jax/net/wire.py", "from swarm_jax.net.hivemind_node import start_node"),
        ("swarm_jax/net/wire.py", "import swarm_jax.core.ids"),
        ("swarm_jax/launcher/x.py", "import swarm_jax.net.hivemind_node"),
        ("models/gpt.py", "import torch.nn"),
        ("models/gpt.py", "from swarm_jax.errors import ConfigError"),
        ("configs/x.py", "from models import functional"),
        ("scripts/run_server.py", "import torch"),
        ("scripts/run_server.py", "from models.torch_gpt import TorchGPT"),
        ("scripts/run_server.py", "from models import torch_gpt"),
        ("swarm_jax/new_layer/x.py", ""),
    ],
)
def test_a_wrong_arrow_is_found(path, source):
    assert len(violations(path, source)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("swarm_jax/core/x.py", "import numpy as np\nfrom swarm_jax.core import ids"),
        ("swarm_jax/net/hivemind_x.py", "import torch\nfrom swarm_jax.core import ids"),
        ("swarm_jax/net/hivemind_x.py", "from swarm_jax.net import hivemind_node"),
        ("scripts/run_dht.py", "from swarm_jax.net.hivemind_node import start_node"),
        ("scripts/train_pytorch.py", "import torch\nfrom models import torch_gpt"),
        (
            "configs/x.py",
            "from configs import tiny\nfrom models.config import GPTConfig",
        ),
        (
            "swarm_jax/roles/x.py",
            "import asyncio\nfrom swarm_jax.errors import Diverged",
        ),
    ],
)
def test_a_right_arrow_is_left_alone(path, source):
    assert violations(path, source) == []
