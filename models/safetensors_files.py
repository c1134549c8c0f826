"""A folder with ``config.json`` and safetensors, as Hugging Face has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Weights:
    """The tensors of a folder, in one file or in several with an index.

    They are read one at a time, straight from the file.

    Attributes:
        unread: Names of the tensors that have not been read yet.

    Raises:
        ValueError: There are none, or they are damaged.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = {}
        for path in _paths(folder):
            file = _open(path)
            self._files |= dict.fromkeys(file.keys(), (path, file))
        self.unread = set(self._files)

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the dtype that it is saved in.

        Files of a model without its head leave out the first part of each name.

        Raises:
            ValueError: It is not there, or damaged.
        """
        names = name, name.partition(".")[2]
        here = next((n for n in names if n in self._files), None)
        if here is None:
            raise ValueError(f"{self._folder} holds no tensor {name}")
        path, file = self._files[here]
        try:
            array = file.get_tensor(here)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged at {here}: {error}") from error
        self.unread.discard(here)
        return array


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of ``config.json``.

    Raises:
        ValueError: It is not there, or not readable.
    """
    return _read_json(folder / CONFIG)


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes ``config.json`` and one file with all tensors."""
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
    # transformers refuses a file that does not name its format.
    save_file(dict(tensors), folder / SINGLE, metadata={"format": "pt"})


def _paths(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} holds neither {SINGLE} nor {INDEX}: give a folder that "
            "save_pretrained of transformers has written (.bin files are not read)"
        )
    named = _read_json(folder / INDEX).get("weight_map", {}).values()
    paths = [folder / name for name in sorted(set(named))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index names")
    return paths


def _open(path: Path):
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
