"""Text from a checkpoint.

    python -m scripts.sample --checkpoint runs/tiny --prompt "def main("

It goes on from the prompt, which is read by the tokenizer of the run, until the model
closes the document. What is longer than the model's sequence goes on from its last
half.
"""

import itertools
from collections.abc import Iterator, Sequence

from swarm_jax.errors import ConfigError
from swarm_jax.launcher import flags, imports


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(prog="scripts.sample", description=__doc__)
    flags.add_checkpoint(parser)
    add = parser.add_argument
    add("--prompt", default="", metavar="TEXT", help="default: a document's beginning")
    add("--samples", type=int, default=1, help="how many (default: %(default)s)")
    add(
        "--tokens",
        type=int,
        default=200,
        help="most tokens of each (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="0: always the most likely token (default: %(default)s)",
    )
    add("--top_k", type=int, help="only the K most likely tokens (default: all)")
    add(
        "--top_p",
        type=float,
        default=1.0,
        help="only the most likely tokens that have this probability together "
        "(default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    flags.add_device(parser)
    flags.add_cache_dir(parser)
    args = parser.parse_args(argv)
    for name in ("samples", "tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: use 1 or more")
    flags.use_device(args.device)
    with imports.many():
        from scripts import saved_model
    saved = saved_model.load(args.checkpoint, args.step)
    for number, text in enumerate(sample(args, saved), start=1):
        if args.samples > 1:
            print(f"--- {number} of {args.samples}, seed {args.seed}")
        print(args.prompt + text, flush=True)


def sample(args, saved) -> Iterator[str]:
    """What follows the prompt, once for each sample."""
    import numpy as np

    from models.decoding import make_decoder
    from models.generation import Sampling, generate
    from swarm_jax.data import text
    from swarm_jax.data.cache import cached_tokenizer

    try:
        sampling = Sampling(
            temperature=args.temperature, top_k=args.top_k, top_p=args.top_p
        )
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    tokenizer = cached_tokenizer(saved.data, args.cache_dir)
    prompt = tokenizer.encode([args.prompt.encode()])[0]
    tokens = generate(
        make_decoder(saved.model),
        saved.params(saved.model),
        prompt if len(prompt) else [tokenizer.end_of_text],
        samples=args.samples,
        sequence_length=saved.model.sequence_length,
        vocab_size=tokenizer.vocab_size,
        sampling=sampling,
        seed=args.seed,
    )
    drawn, ended = [], np.zeros(args.samples, bool)
    for tokens_B in itertools.islice(tokens, args.tokens):
        drawn.append(tokens_B)
        ended |= tokens_B == tokenizer.end_of_text
        if ended.all():
            break
    for ids in np.stack(drawn, axis=1):
        yield text.decode(tokenizer, text.until_end(tokenizer, ids))


if __name__ == "__main__":
    flags.run_main(main)
