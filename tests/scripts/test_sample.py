"""scripts.sample: text in the run's own tokens, and what it refuses."""

import pytest

from scripts import sample
from swarm_jax.errors import CheckpointError, ConfigError


@pytest.fixture
def arguments(tmp_path):
    return [
        *("--checkpoint", str(tmp_path / "run"), "--device", "cpu"),
        *("--cache_dir", str(tmp_path / "cache"), "--tokens", "40"),
    ]


BPE = (
    "--config.data.tokenizer=bpe",
    "--config.data.bpe_vocab_size=270",
    "--config.model.vocab_size=300",
)


@pytest.mark.parametrize("tokenizer", [(), BPE], ids=["bytes", "bpe"])
def test_samples_go_on_from_the_prompt(arguments, make_checkpoint, tokenizer, capsys):
    make_checkpoint(*tokenizer)
    prompt = "3 green bottles"
    sample.main([*arguments, "--prompt", prompt, "--samples", "2", "--seed", "7"])
    output = capsys.readouterr().out
    for number in (1, 2):
        assert f"--- {number} of 2, seed 7\n{prompt}" in output
    assert len(output) > 2 * (len(prompt) + 20)


def test_the_end_of_the_text_ends_a_sample(arguments, make_checkpoint, capsys):
    """With the most likely token the text repeats; the document's end is cut off."""
    make_checkpoint()
    greedy = [*arguments, "--temperature", "0"]
    sample.main(greedy)
    whole = capsys.readouterr().out
    sample.main([*greedy, "--tokens", "5"])
    assert whole.startswith(capsys.readouterr().out.rstrip("\n\ufffd"))


@pytest.mark.parametrize(
    "wrong", [("--temperature", "-1"), ("--top_p", "0"), ("--samples", "0")]
)
def test_what_cannot_be_drawn_is_refused(arguments, make_checkpoint, wrong):
    make_checkpoint()
    with pytest.raises(ConfigError, match=f"{wrong[0]} {wrong[1]}"):
        sample.main([*arguments, *wrong])


def test_no_checkpoint_is_said_so(arguments):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        sample.main(arguments)
