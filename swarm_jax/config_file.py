"""Config files: Python modules that make an experiment."""

import importlib.util
from pathlib import Path
from types import ModuleType

from swarm_jax.errors import ConfigError


def load_module(path: str | Path) -> ModuleType:
    """The module that a config file is.

    Raises:
        ConfigError: No such file, or it has no ``get_config``.
    """
    path = Path(path)
    if not path.is_file():
        known = (
            ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none"
        )
        raise ConfigError(f"No config file {path}. Found here: {known}")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config()")
    return module
