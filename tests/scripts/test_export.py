"""scripts.export and scripts.import_weights: there and back, as users do it."""

import asyncio
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scripts import export, import_weights, initial_weights, wiring
from swarm_jax.config import load_config
from swarm_jax.errors import CheckpointError, ConfigError
from swarm_jax.launcher import workdir
from swarm_jax.stage.checkpoints import load_params
from swarm_jax.stage.export import flat_layers


@pytest.fixture
def run_export(tmp_path):
    def run(*arguments):
        checkpoint = ("--checkpoint", str(tmp_path / "run"))
        cache = ("--cache_dir", str(tmp_path / "cache"))
        export.main([*checkpoint, *cache, "--to", str(tmp_path / "model"), *arguments])
        return tmp_path / "model"

    return run


@pytest.fixture
def imported(make_checkpoint, run_export, experiment, tmp_path, capsys):
    """Layers that were exported and imported; the experiment that starts with them."""
    layers = make_checkpoint()
    source, target = run_export(), tmp_path / "tuned" / "checkpoints"
    import_weights.main(
        ["--from", str(source), "--config", experiment, "--to", str(target)]
    )
    output = capsys.readouterr().out
    override = re.search(r"--config.initial_weights=\w+", output)[0]
    assert f"--workdir {tmp_path / 'tuned'}" in output
    return layers, load_config(experiment, [override]), target


def test_there_and_back_is_bit_for_bit_the_same(imported):
    layers, config, target = imported
    found, saved_config = load_params(target)
    assert saved_config["initial_weights"] == config.initial_weights
    expected = {
        f"{a}/{b}": array for a, tree in layers.items() for b, array in tree.items()
    }
    found = flat_layers(found)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_stages_and_the_control_start_with_them(imported, tmp_path):
    layers, config, target = imported
    whole = flat_layers(wiring.initial_params(config, str(target)))
    np.testing.assert_array_equal(
        whole["embed/embedding"], layers["embed"]["embedding"]
    )
    compute = wiring.make_compute(config, 1, inline=True, folder=str(target))
    expected = layers["layers.1"]["attention/qkv/kernel"]
    for again in (False, True):
        if again:  # as when a run goes back to step 0
            asyncio.run(compute.reset())
        kernel = compute.params["blocks"]["attention"]["qkv"]["kernel"]
        np.testing.assert_array_equal(kernel[0], expected)

    for folder in (tmp_path / "elsewhere", None):
        with pytest.raises((CheckpointError, ConfigError), match="imported parameters"):
            wiring.initial_params(config, folder and str(folder))


def test_only_their_experiment_starts_with_them(imported, experiment):
    _, config, target = imported
    plain = load_config(experiment)
    others = [plain, load_config(experiment, ["--config.initial_weights=sha256_0"])]
    for other in others:
        assert other.model_fingerprint() != config.model_fingerprint()
        with pytest.raises(ConfigError, match="another experiment"):
            workdir.prepare(target.parent, other, overwrite=False, may_resume=True)
    with pytest.raises(CheckpointError, match="is of another experiment"):
        initial_weights.reader(others[1], ["embed"], target)
    assert (
        workdir.prepare(target.parent, config, overwrite=False, may_resume=False) == 0
    )


def test_a_run_is_overwritten_without_its_start(imported):
    _, config, target = imported
    (target / "step_00000005").mkdir()
    workdir.prepare(target.parent, config, overwrite=True, may_resume=True)
    assert [path.name for path in target.glob("step_*")] == ["step_00000000"]


def test_a_folder_with_checkpoints_is_left_alone(imported, experiment, tmp_path):
    _, _, target = imported
    source = tmp_path / "model"
    again = ["--from", str(source), "--config", experiment, "--to", str(target)]
    with pytest.raises(CheckpointError, match="holds checkpoints already"):
        import_weights.main(again)


def test_a_tokenizer_that_was_trained_goes_along(make_checkpoint, run_export):
    from tokenizers import Tokenizer

    make_checkpoint(
        "--config.data.tokenizer=bpe",
        "--config.data.bpe_vocab_size=270",
        "--config.model.vocab_size=300",
    )
    folder = run_export()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.id_to_token(end) == settings["eos_token"] == "<|endoftext|>"
    assert tokenizer.decode(tokenizer.encode("7 green").ids) == "7 green"


def test_export_refuses_what_no_layout_holds(make_checkpoint, run_export, tmp_path):
    make_checkpoint("--config.model.positions=sinusoidal")
    with pytest.raises(ConfigError, match="for llama model.positions='sinusoidal'"):
        run_export()
    assert not list(tmp_path.glob("model*"))


def test_export_leaves_a_folder_that_is_there_alone(
    make_checkpoint, run_export, tmp_path
):
    make_checkpoint()
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        run_export()


def test_the_fields_that_fit_are_printed(make_checkpoint, run_export, capsys):
    make_checkpoint()
    folder = run_export()
    capsys.readouterr()
    import_weights.main(["--from", str(folder), "--print_config"])
    printed = capsys.readouterr().out
    assert printed.startswith("GPTConfig(\n    num_layers=2,\n    model_dim=16,")


def test_import_lists_what_does_not_fit(
    make_checkpoint, run_export, experiment, tmp_path
):
    make_checkpoint()
    folder = run_export()
    arguments = ["--from", str(folder), "--config", experiment]
    arguments += ["--to", str(tmp_path / "new")]
    wrong = ["--config.model.ffn_dim=32", "--config.model.vocab_size=512"]
    with pytest.raises(ConfigError) as refused:
        import_weights.main([*arguments, *wrong])
    assert "model.ffn_dim is 32, the weights' is 24" in str(refused.value)
    assert "model.vocab_size is 512, the weights' is 384" in str(refused.value)

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="no place for: .*q_proj.bias"):
        import_weights.main(arguments)
    with pytest.raises(ConfigError, match="what is to start, and where"):
        import_weights.main(arguments[:4])
    assert not (tmp_path / "new").exists()
