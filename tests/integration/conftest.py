"""Swarms of real processes over loopback, started as a user starts them by hand."""

from pathlib import Path

import psutil
import pytest

from swarm_jax.launcher.processes import Processes
from tests.integration.by_hand import MARK, SwarmByHand

CONFIG = '''
"""So small that to start takes longer than to train, but its state is three chunks."""

from models.config import GPTConfig
from swarm_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = ExperimentConfig(
        run_id="integration",
        seed=5,
        steps={steps},
        model=GPTConfig(
            num_layers=3, model_dim=64, num_heads=2, ffn_dim=6144, sequence_length=16
        ),
    )
    config.data.max_corpus_bytes = 400_000
    config.data.target_batch_size = 12
    config.optimizer.warmup_steps = 2
    config.swarm.microbatch_size = 2
    config.validation.sequences = 8
    # Who is to be equal to whom in the end is known by the stage they start in.
    config.tuning.rebalancing.strategy = "off"
    return config
'''


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Corpora and compiled programs, shared by all tests of this worker."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def steps() -> int:
    """Of each run of a file."""
    return 8


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, steps) -> str:
    path = tmp_path_factory.mktemp("configs") / "integration.py"
    path.write_text(CONFIG.format(steps=steps))
    return str(path)


@pytest.fixture(scope="module")
def single(tmp_path_factory, cache_dir, config_file) -> SwarmByHand:
    """The same model, trained in one process."""
    folder = tmp_path_factory.mktemp("single")
    with Processes(folder / "logs") as processes:
        run = SwarmByHand(folder, cache_dir, config_file, processes)
        run.train_single()
    return run


@pytest.fixture
def swarm(tmp_path, cache_dir, config_file):
    """A swarm to start; the test fails if any process of it is left behind."""
    with Processes(tmp_path / "logs") as processes:
        yield SwarmByHand(tmp_path, cache_dir, config_file, processes)
    left = [process for process in psutil.process_iter() if _is_of(tmp_path, process)]
    assert not left, f"left behind: {left}"


def _is_of(workdir: Path, process: psutil.Process) -> bool:
    try:
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and process.environ().get(MARK) == str(workdir)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
