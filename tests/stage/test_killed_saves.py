"""A process killed at any point of a save.

What SIGKILL leaves is what the disk holds at that moment. So the disk is copied before
every call that changes it, and each copy is what one kill would have left.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from swarm_jax.errors import CheckpointError
from swarm_jax.stage.checkpoints import CheckpointFolder
from swarm_jax.stage.manifests import Saved

REPOSITORY = Path(__file__).parents[2]
NAMES = ("embed", "layers.0")
CALLS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def make_folder(root):
    return CheckpointFolder(root, model_fingerprint="ours", keep_last=2)


def layers_at(step):
    return {name: {"params/kernel": np.full((2, 3), float(step))} for name in NAMES}


def save(folder, step):
    shared = {"opt_state/0/count": np.asarray(step)}
    return folder.save(0, 1, Saved(step, 0, "", None), layers_at(step), shared)


def checkpoint(folder, step):
    folder.complete(step, 0, {0: save(folder, step)}, config={}, summary={})


def assert_restores(folder, step):
    saved, layers, shared = folder.load(step, NAMES)
    assert saved.step == shared["opt_state/0/count"] == step
    for name in NAMES:
        expected = layers_at(step)[name]["params/kernel"]
        np.testing.assert_array_equal(layers[name]["params/kernel"], expected)


class Disk:
    """Copies a folder before every call of this process that changes a file.

    Attributes:
        calls: (event, name of the file), for what no copy can show.
    """

    def __init__(self):
        self.root = None
        self.copies = []
        self.calls = []
        self._lock = threading.RLock()
        self._busy = False
        sys.addaudithook(self._before)

    def watch(self, root):
        self.root, self.copies, self.calls = root, [], []

    def stop(self):
        self.root = None
        return self.copies

    def _before(self, event, arguments):
        if event not in CALLS or self.root is None:
            return
        with self._lock:
            if not self._busy:
                self._busy = True
                self.calls.append((event, Path(str(arguments[0])).name))
                copy = contents(self.root)
                if copy not in self.copies:
                    self.copies.append(copy)
                self._busy = False


def contents(root):
    """Bytes by path; None for a folder. Files may come and go meanwhile."""
    found = {}
    for path in sorted(root.rglob("*")):
        try:
            found[path.relative_to(root)] = None if path.is_dir() else path.read_bytes()
        except FileNotFoundError:
            continue
    return found


def restore(copy, root):
    for path, content in copy.items():
        if content is None:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    return make_folder(root)


@pytest.fixture(scope="module")
def disk():
    """Of the whole process: an audit hook cannot be taken away."""
    return Disk()


def test_no_kill_while_saving_leaves_half_a_checkpoint(disk, tmp_path):
    folder = make_folder(tmp_path / "watched")
    checkpoint(folder, 10)
    disk.watch(tmp_path / "watched")
    digest = save(folder, 20)
    copies = disk.stop()
    assert len(copies) > 10
    for index, copy in enumerate(copies):
        left = restore(copy, tmp_path / str(index))
        assert left.steps() == [10]
        assert_restores(left, 10)
        with pytest.raises(CheckpointError, match="Step 10 is there"):
            left.load(20, NAMES)
        assert not left.holds(20, {0: digest}, 0)
        checkpoint(left, 20)
        assert left.steps() == [10, 20]
        assert_restores(left, 20)
        checkpoint(left, 30)
        assert left.steps() == [20, 30]
        assert len(list((left.root / "step_00000020").iterdir())) == 3
    assert ("open", f"stage_0.{digest}.json") not in disk.calls


def test_no_kill_while_completing_leaves_half_a_checkpoint(disk, tmp_path):
    folder = make_folder(tmp_path / "watched")
    for step in (10, 20):
        checkpoint(folder, step)
    save(folder, 20)
    digest = save(folder, 30)
    disk.watch(tmp_path / "watched")
    folder.complete(30, 0, {0: digest}, config={}, summary={})
    copies = disk.stop()
    assert len(copies) > 10
    found = set()
    for index, copy in enumerate(copies):
        left = restore(copy, tmp_path / str(index))
        found.add(tuple(left.steps()))
        for step in left.steps():
            assert_restores(left, step)
        left.complete(30, 0, {0: digest}, config={}, summary={})
        assert_restores(left, 30)
        checkpoint(left, 40)
        assert left.steps() == [30, 40]
        assert len(list(left.root.iterdir())) == 2
    assert found == {(10, 20), (10, 20, 30), (20, 30)}
    written = [name for event, name in disk.calls if event == "open"]
    assert sum(name.endswith(".partial") for name in written) == 1
    removed = [name for event, name in disk.calls if event == "os.remove"]
    assert removed[0] == "complete.json"


CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_killed_saves import checkpoint, make_folder
assert "orbax.checkpoint" not in sys.modules
folder = make_folder(sys.argv[3])
for step in range(1, 10_000):
    checkpoint(folder, step)
    print(step, flush=True)
"""


def test_a_killed_process_leaves_whole_checkpoints(tmp_path):
    command = [sys.executable, "-c", CHILD, REPOSITORY, Path(__file__).parent, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) == 5:
                child.kill()
    folder = make_folder(tmp_path)
    steps = folder.steps()
    assert len(steps) >= 2 and steps[-1] >= 5
    for step in steps:
        assert_restores(folder, step)
    checkpoint(folder, steps[-1] + 1)
    assert_restores(folder, steps[-1] + 1)
    marker = folder.root / f"step_{steps[-1] + 1:08d}" / "complete.json"
    assert json.loads(marker.read_text())["step"] == steps[-1] + 1
