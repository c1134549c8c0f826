"""Options shared by the scripts, and errors as one line."""

import gc
import os
import sys
from pathlib import Path

import pytest

from swarm_jax.errors import ConfigError, StartupError
from swarm_jax.launcher import flags


@pytest.fixture
def parser():
    parser = flags.Parser(prog="scripts.run_server")
    flags.add_experiment(parser)
    flags.add_network(parser)
    flags.add_process(parser)
    flags.add_worker(parser, name=None)
    return parser


REQUIRED = ["--config", "configs/tiny.py", "--workdir", "runs/x"]


def test_overrides_are_kept_apart_from_lists_of_addresses(parser):
    override = "--config.data.corpus=files:/my texts"
    args = parser.parse_args([*REQUIRED, "--initial_peers", "/a", "/b", override])
    assert args.initial_peers == ["/a", "/b"]
    assert flags.experiment(args).data.corpus == "files:/my texts"
    assert flags.experiment_arguments(args) == ["--config", "configs/tiny.py", override]


def test_defaults_listen_everywhere_and_leave_the_device_to_jax(parser):
    args = parser.parse_args(REQUIRED)
    assert list(args.host_maddrs) == ["/ip4/0.0.0.0/tcp/0"]
    assert list(args.initial_peers) == list(args.announce_maddrs) == []
    assert (args.device, args.name, args.workdir) == (None, None, Path("runs/x"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --config"),
        ([*REQUIRED, "--stag", "1"], "unrecognized arguments: --stag 1"),
        ([*REQUIRED, "--initial_peer", "/a"], "unrecognized arguments: --initial_peer"),
        ([*REQUIRED, "--device", "gpu"], "invalid choice: 'gpu'"),
    ],
)
def test_bad_arguments_are_config_errors(parser, arguments, message):
    with pytest.raises(ConfigError, match=message):
        parser.parse_args(arguments)


def test_an_override_needs_an_experiment():
    with pytest.raises(ConfigError, match="no experiment that --config.seed=1"):
        flags.Parser(prog="scripts.compare").parse_args(["--config.seed=1"])


@pytest.mark.parametrize("error", [ConfigError, StartupError])
def test_errors_of_the_user_are_one_line(error, capsys):
    def main():
        raise error("Port 80 is taken.\n  Choose another.")

    with pytest.raises(SystemExit) as stop:
        flags.run_main(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Port 80 is taken. Choose another.\n"


def test_other_ends_have_their_exit_codes():
    def interrupted():
        raise KeyboardInterrupt

    for main, code in ((interrupted, 130), (lambda: 1, 1), (lambda: None, None)):
        with pytest.raises(SystemExit) as stop:
            flags.run_main(main)
        assert stop.value.code == code


def test_who_lost_the_parent_already_leaves(monkeypatch):
    class Libc:
        def prctl(self, *arguments):
            return 0

    monkeypatch.setattr(flags.ctypes, "CDLL", lambda *a, **k: Libc())
    flags.die_with_parent(os.getppid())
    with pytest.raises(SystemExit, match="Parent process 1234567 is gone"):
        flags.die_with_parent(1234567)


def test_cache_folder_follows_the_desktop_convention(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/cache")
    assert flags.default_cache_dir() == Path("/big/cache/swarm_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert flags.default_cache_dir() == Path.home() / ".cache" / "swarm_jax"


def test_device_is_chosen_before_and_after_jax_is_imported(monkeypatch):
    updates = {}

    class Jax:
        class config:
            update = updates.__setitem__

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    flags.use_device(None)
    assert os.environ["JAX_PLATFORMS"] == "tpu"
    flags.use_device("cuda13")
    assert os.environ["JAX_PLATFORMS"] == "cuda,cpu"
    monkeypatch.setitem(sys.modules, "jax", Jax)
    flags.use_device("cpu")
    assert updates == {"jax_platforms": "cpu"}


def test_a_script_ends_without_a_last_search_for_garbage():
    with pytest.raises(SystemExit) as ended:
        flags.run_main(lambda: None)
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert frozen and ended.value.code is None
