"""Makes existing weights what a run starts with: Llama's and GPT-2's layouts.

    python -m scripts.import_weights --from FOLDER --print_config
    python -m scripts.import_weights --from FOLDER --config FILE --to runs/x/checkpoints

The folder is one that save_pretrained of transformers wrote: config.json and
safetensors. The first command prints the fields of the GPTConfig that the weights fit.
The second writes them as the checkpoint of step 0, for a new optimizer, and prints the
command that trains from there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, imports
from swarm_jax.launcher.workdir import CHECKPOINTS


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.import_weights", description=__doc__)
    flags.add_experiment(parser, default="")
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="with config.json and safetensors",
    )
    add("--to", type=Path, metavar="FOLDER", help="new folder for checkpoints")
    add("--print_config", action="store_true", help="only print the fields that fit")
    args = parser.parse_args(argv)
    flags.use_device("cpu")
    from models import hugging_face_config, safetensors_files

    try:
        theirs = safetensors_files.read_config(args.source)
        if args.print_config:
            print(describe(hugging_face_config.fitting_fields(theirs)))
            return
        if not args.config or args.to is None:
            raise ConfigError("what is to start, and where? --config FILE --to FOLDER")
        config = flags.experiment(args)
        if differences := hugging_face_config.differences(config.model, theirs):
            raise ConfigError(
                f"the weights do not fit this experiment: {'; '.join(differences)}. "
                "--print_config prints what does"
            )
        digest = convert(args.source, theirs, config, args.to)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(how_to_train(args, digest))


def convert(source: Path, theirs, config, folder: Path) -> str:
    """Writes the checkpoint; returns the digest of the parameters."""
    with imports.many():
        from models import hugging_face, safetensors_files
        from scripts import initial_weights, wiring

    wiring.prepare_jax(config)
    layout = hugging_face.LAYOUTS[theirs["model_type"]]
    weights = safetensors_files.Weights(source)
    shapes = initial_weights.shapes_of(config)

    def read(layer: str):
        return hugging_face.imported(
            layout, config.model, layer, shapes[layer], weights.read
        )

    digest = initial_weights.digest_of(shapes, read)
    check_all_read(source, layout, weights.unread, config.model.tied_head)
    if config.initial_weights not in (None, digest):
        raise ConfigError(
            f"this experiment starts with initial_weights={config.initial_weights!r}, "
            f"and these are {digest!r}"
        )
    config = dataclasses.replace(config, initial_weights=digest)
    initial_weights.save(config, shapes, read, folder, str(source))
    return digest


def check_all_read(source: Path, layout, unread, tied_head: bool) -> None:
    """Raises:
    ValueError: There are tensors that the model has no place for.
    """
    ignored = (*layout.ignored, *(("lm_head.weight",) if tied_head else ()))
    if left := sorted(name for name in unread if not name.endswith(ignored)):
        raise ValueError(
            f"{source} holds tensors that its config.json has no place for: "
            f"{', '.join(left[:5])}{', ...' if len(left) > 5 else ''}"
        )


def describe(fields) -> str:
    lines = [f"    {name}={value!r}," for name, value in fields.items()]
    return "\n".join(["GPTConfig(", *lines, ")"])


def how_to_train(args, digest: str) -> str:
    experiment = " ".join(flags.experiment_arguments(args))
    experiment += f" --config.initial_weights={digest}"
    if args.to.name == CHECKPOINTS:
        how = f"python -m scripts.launch {experiment} --workdir {args.to.parent}"
    else:
        how = f"Give all processes {experiment}\n"
        how += f"and stage servers --checkpoint_dir {args.to} too"
    return (
        f"{args.to} holds the parameters that this experiment starts with:\n"
        f"    initial_weights={digest!r}\n{how}"
    )


if __name__ == "__main__":
    flags.run_main(main)
