"""Finds the files of a corpus: in a folder, by a glob, or one by its path."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from swarm_jax.errors import ConfigError


def find_files(
    kind: str, where: str, suffixes: tuple[str, ...] = ("",)
) -> tuple[Path, list[Path]]:
    """All files of a folder, hidden ones left out, or all files that a glob matches.

    Args:
        kind: "files" or "jsonl", for messages.
        where: Folder, glob or file.
        suffixes: Of a folder, only files whose name ends in one of them.

    Returns:
        A folder above all of them, and their paths.

    Raises:
        ConfigError: No such folder, or no file in it, or none that matches.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        paths = [path for path in walk(folder) if path.name.endswith(suffixes)]
        if not paths:
            which = " or ".join(filter(None, suffixes))
            raise ConfigError(
                f"data.corpus: the folder {folder} has no files in it"
                + (f" that end in {which}" if which else "")
            )
        return folder, paths
    found = [Path(path) for path in glob.glob(str(folder), recursive=True)]
    paths = [path for path in found if path.is_file()]
    if not paths:
        problem = "no file matches" if glob.has_magic(where) else "there is no folder"
        example = {"files": "~/books/**/*.txt", "jsonl": "~/pile/*.jsonl.zst"}[kind]
        raise ConfigError(
            f"data.corpus: {problem} {where!r} (seen from {Path.cwd()}). Use "
            f"'{kind}:FOLDER', '{kind}:FILE' or '{kind}:GLOB', such as "
            f"'{kind}:{example}'"
        )
    return Path(os.path.commonpath([path.parent for path in paths])), paths


def walk(root: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    """Files below a folder; neither hidden ones nor folders named in ``skip``."""
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".")]
        paths = (Path(folder, file) for file in files if not file.startswith("."))
        yield from (path for path in paths if path.is_file())


def name_of(path: Path) -> str:
    """A path as valid text."""
    return os.fsencode(path.as_posix()).decode(errors="replace")
