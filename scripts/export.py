"""Writes a checkpoint as a Hugging Face model: config.json, safetensors, tokenizer.

    python -m scripts.export --checkpoint runs/tiny --to exported

Models like Llama (RMSNorm, gated feed-forward, rotary positions) become one of its
layout, those like GPT-2 (LayerNorm with biases, learned positions) one of GPT-2's;
others have none there. A block that is applied several times is written several times.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, imports


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.export", description=__doc__)
    flags.add_checkpoint(parser)
    to_help = "new folder for the model"
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help=to_help
    )
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    if args.to.exists():
        raise ConfigError(f"{args.to} is there already: choose another with --to")
    flags.use_device("cpu")
    with imports.many():
        from scripts import saved_model
    saved = saved_model.load(args.checkpoint, args.step)
    partial = args.to.with_name(args.to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model_type = export(saved, partial, args.cache_dir)
        partial.rename(args.to)
    except OSError as error:
        raise ConfigError(f"cannot write to {args.to}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.to} holds step {saved.step} as a {model_type} model")


def export(saved, folder: Path, cache_dir: Path) -> str:
    """Writes the files; returns the ``model_type``."""
    from models import hugging_face, hugging_face_config, safetensors_files
    from swarm_jax.data.cache import cached_tokenizer
    from swarm_jax.stage.export import flat_layers

    try:
        layout = hugging_face_config.layout_of(saved.model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tokenizer = cached_tokenizer(saved.data, cache_dir)
    layers = {name: flat_layers(tree) for name, tree in saved.layers.items()}
    safetensors_files.write_model(
        folder,
        hugging_face_config.to_hugging_face(saved.model, tokenizer.end_of_text),
        dict(hugging_face.exported(layout, saved.model, layers)),
    )
    if saved.data.tokenizer != "bytes":
        write_tokenizer(folder, tokenizer)
    return layout.name


def write_tokenizer(folder: Path, tokenizer) -> None:
    """The files that transformers looks for."""
    content = tokenizer.serialize()
    vocabulary = json.loads(content)["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    end = names[tokenizer.end_of_text]
    (folder / "tokenizer.json").write_text(content)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    flags.run_main(main)
