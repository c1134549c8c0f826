"""Hugging Face's layouts of Llama and GPT-2 as tables: where each tensor belongs.

Tensors go through one at a time, so that a model need not fit in memory twice. Numpy
only: neither torch nor transformers. ``hugging_face_config.py`` has the fields.

Kernels are [inputs, outputs] here and in GPT-2 (its ``Conv1D``), and the other way
round in Llama (``nn.Linear``), as is ``lm_head`` of both. Both pair component i of a
head with i + K/2 in rotary positions, as we do, so that no column changes its place.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from models.config import GPTConfig

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _named(*modules: str, kernel: bool = False) -> dict[str, tuple[str, ...]]:
    """A module's two tensors by our names for them."""
    weights = tuple(f"{module}.weight" for module in modules)
    biases = tuple(f"{module}.bias" for module in modules)
    return {"kernel" if kernel else "scale": weights, "bias": biases}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tensors of one family of models are.

    Attributes:
        name: "llama" or "gpt2", Hugging Face's ``model_type``.
        block: Beginning of the names of a block's tensors, up to its number.
        modules: By our module of a block, our leaf and their tensors, which are joined
            along our last axis.
        ends: The same for "embed" and "head"; these names are whole.
        transposed: Whether kernels of blocks are [outputs, inputs].
        ignored: Endings of tensors that hold nothing learned.
    """

    name: str
    block: str
    modules: Mapping[str, Mapping[str, tuple[str, ...]]]
    ends: Mapping[str, tuple[str, ...]]
    transposed: bool
    ignored: tuple[str, ...]

    def tensors(self, layer: str, name: str, block_number: int) -> tuple[str, ...]:
        """Their names of our array ``name`` of ``layer``.

        Args:
            block_number: Among their blocks; of no meaning for "embed" and "head".
        """
        if layer in ("embed", "head"):
            return self.ends[f"{layer}/{name}"]
        module, _, leaf = name.rpartition("/")
        return tuple(
            f"{self.block}.{block_number}.{tensor}"
            for tensor in self.modules[module][leaf]
        )

    def is_transposed(self, layer: str, name: str) -> bool:
        """Whether our array has its axes the other way round than their tensors."""
        return name.endswith("kernel") and (self.transposed or layer == "head")


LLAMA = Layout(
    name="llama",
    block="model.layers",
    modules={
        "attention_norm": _named("input_layernorm"),
        "attention/qkv": _named(*_QKV, kernel=True),
        "attention/output": _named("self_attn.o_proj", kernel=True),
        "feed_forward_norm": _named("post_attention_layernorm"),
        "feed_forward/gate": _named("mlp.gate_proj", kernel=True),
        "feed_forward/input": _named("mlp.up_proj", kernel=True),
        "feed_forward/output": _named("mlp.down_proj", kernel=True),
    },
    ends={
        "embed/embedding": ("model.embed_tokens.weight",),
        "head/norm/scale": ("model.norm.weight",),
        "head/output/kernel": ("lm_head.weight",),
    },
    transposed=True,
    ignored=("rotary_emb.inv_freq",),
)

GPT2 = Layout(
    name="gpt2",
    block="transformer.h",
    modules={
        "attention_norm": _named("ln_1"),
        "attention/qkv": _named("attn.c_attn", kernel=True),
        "attention/output": _named("attn.c_proj", kernel=True),
        "feed_forward_norm": _named("ln_2"),
        "feed_forward/input": _named("mlp.c_fc", kernel=True),
        "feed_forward/output": _named("mlp.c_proj", kernel=True),
    },
    ends={
        "embed/embedding": ("transformer.wte.weight",),
        "embed/positions": ("transformer.wpe.weight",),
        "head/norm/scale": ("transformer.ln_f.weight",),
        "head/norm/bias": ("transformer.ln_f.bias",),
        "head/output/kernel": ("lm_head.weight",),
    },
    transposed=False,
    ignored=(".attn.bias", ".attn.masked_bias"),
)

LAYOUTS = {layout.name: layout for layout in (LLAMA, GPT2)}


def exported(
    layout: Layout, config: GPTConfig, layers: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, of a model that the layout can hold.

    A block that is applied several times becomes as many equal blocks. The padding of
    the vocabulary is left out, and the embedding's scale is multiplied in.

    Args:
        layers: By layer, our arrays by names like "attention/qkv/kernel".
    """
    for layer, arrays in layers.items():
        for name, array in arrays.items():
            array = _unpadded(config, layer, name, array)
            if (layer, name) == ("embed", "embedding"):
                array = array * array.dtype.type(config.embedding_scale)
            for number in _block_numbers(config, layer):
                theirs = layout.tensors(layer, name, number)
                pieces = _split(config, array, len(theirs))
                for tensor, piece in zip(theirs, pieces, strict=True):
                    yield tensor, _turned(layout, layer, name, piece)


def imported(
    layout: Layout,
    config: GPTConfig,
    layer: str,
    shapes: Shapes,
    tensor: Callable[[str], np.ndarray],
) -> Arrays:
    """One of our layers.

    Args:
        config: One without repeated blocks, which the model fits.
        shapes: Of the layer's arrays, by name.
        tensor: Gives their tensor of a name.

    Returns:
        Arrays in the parameter dtype. What pads the vocabulary is 0.

    Raises:
        ValueError: A tensor has another shape than the config says.
    """
    dtype = np.dtype(config.parameter_dtype)
    found = {}
    for name, shape in shapes.items():
        (number,) = _block_numbers(config, layer)
        theirs = layout.tensors(layer, name, number)
        pieces = [_turned(layout, layer, name, tensor(their)) for their in theirs]
        array = np.concatenate([piece.astype(dtype) for piece in pieces], axis=-1)
        if (layer, name) == ("embed", "embedding"):
            array = array / dtype.type(config.embedding_scale)
        if (layer, name) == ("embed", "positions"):
            array = array[: shape[0]]
        array = _padded(config, layer, name, array)
        if array.shape != tuple(shape):
            raise ValueError(
                f"{' + '.join(theirs)} make {layer}/{name} of shape {array.shape}, but "
                f"the config's is {tuple(shape)}: is config.json of another model?"
            )
        found[name] = np.ascontiguousarray(array)
    return found


def _block_numbers(config: GPTConfig, layer: str) -> range:
    if layer in ("embed", "head"):
        return range(1)
    first = int(layer.removeprefix("layers.")) * config.block_repeats
    return range(first, first + config.block_repeats)


def _split(config: GPTConfig, array: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Queries, keys and values, where they are tensors of their own."""
    if pieces == 1:
        return [array]
    queries = config.num_heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    return np.split(array, [queries, queries + keys], axis=-1)


def _turned(layout: Layout, layer: str, name: str, array: np.ndarray) -> np.ndarray:
    turned = array.T if layout.is_transposed(layer, name) else array
    return np.ascontiguousarray(turned)


def _vocabulary_axis(layer: str, name: str) -> int | None:
    return {"embed/embedding": 0, "head/output/kernel": 1}.get(f"{layer}/{name}")


def _unpadded(
    config: GPTConfig, layer: str, name: str, array: np.ndarray
) -> np.ndarray:
    axis = _vocabulary_axis(layer, name)
    if axis is None:
        return array
    return np.take(array, np.arange(config.vocab_size), axis)


def _padded(config: GPTConfig, layer: str, name: str, array: np.ndarray) -> np.ndarray:
    axis = _vocabulary_axis(layer, name)
    if axis is None or array.shape[axis] != config.vocab_size:
        return array
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, config.padded_vocab_size - config.vocab_size)
    return np.pad(array, padding)
