"""Which models Hugging Face's layouts of Llama and GPT-2 can hold, field by field.

``config.json`` there and ``GPTConfig`` here, as plain values: neither torch nor
transformers is needed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.config import GPTConfig
from models.hugging_face import GPT2, LAYOUTS, LLAMA, Layout

_GATED = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
_PLAIN = {"gelu": "gelu_new", "relu": "relu"}
_OUR_GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
_OUR_PLAIN = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}

_FREE = ("sequence_length", "vocab_multiple", "compute_dtype", "parameter_dtype")
"""Fields that weights do not decide; the length has a maximum."""


def layout_of(config: GPTConfig) -> Layout:
    """The layout that holds such a model.

    Raises:
        ValueError: None does; the message names the fields in the way.
    """
    obstacles = (LLAMA, _llama_obstacles(config)), (GPT2, _gpt2_obstacles(config))
    for layout, fields in obstacles:
        if not fields:
            return layout
    reasons = "; ".join(
        f"for {layout.name} {', '.join(fields)}" for layout, fields in obstacles
    )
    raise ValueError(
        f"no layout of Hugging Face holds this model. In the way are {reasons}"
    )


def to_hugging_face(config: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """``config.json`` of such a model.

    Args:
        end_of_text: Id of the token that closes a document, if there is one.

    Raises:
        ValueError: No layout holds it.
    """
    layout = layout_of(config)
    common = {
        "model_type": layout.name,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": config.parameter_dtype,
    }
    return common | (_to_llama(config) if layout is LLAMA else _to_gpt2(config))


def fitting_fields(hugging_face: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the ``GPTConfig`` for a ``config.json``; the others keep their default.

    Raises:
        ValueError: It is of a model that we do not have; the message says why.
    """
    name = hugging_face.get("model_type")
    if name not in LAYOUTS:
        raise ValueError(
            f"config.json is of model_type={name!r}: only {' and '.join(LAYOUTS)} can "
            "be imported"
        )
    try:
        read = _from_llama if name == "llama" else _from_gpt2
        return read(hugging_face)
    except KeyError as missing:
        raise ValueError(f"config.json of a {name} model lacks {missing}") from None


def differences(config: GPTConfig, hugging_face: Mapping[str, Any]) -> list[str]:
    """What must be changed in ``config`` for these weights, a line each.

    Raises:
        ValueError: It is of a model that we do not have.
    """
    fitting = GPTConfig(**fitting_fields(hugging_face))
    found = []
    for name in _decided_fields(fitting):
        ours, theirs = getattr(config, name), getattr(fitting, name)
        if ours != theirs:
            found.append(f"model.{name} is {ours!r}, the weights' is {theirs!r}")
    if config.sequence_length > fitting.sequence_length:
        found.append(
            f"model.sequence_length is {config.sequence_length}, the weights' is "
            f"{fitting.sequence_length} at most"
        )
    return found


def _decided_fields(fitting: GPTConfig) -> list[str]:
    """Those that weights decide; of optional ones the property that resolves them."""
    resolved = {"num_kv_heads": "kv_heads", "qkv_biases": "attention_biases"}
    undecided = {*_FREE, "boundary", "boundary_factor"}
    if fitting.positions != "rotary":
        undecided.add("rope_base")
    if not fitting.tied_head:
        undecided.add("embedding_scale")
    names = [field.name for field in dataclasses.fields(fitting)]
    return [resolved.get(name, name) for name in names if name not in undecided]


def _obstacles(config: GPTConfig, allowed: Mapping[str, tuple]) -> list[str]:
    """Fields whose value is none of those allowed."""
    allowed = {
        "embedding_dim": (None,),
        "embedding_norm": (False,),
        "head": ("linear",),
        "head_bias": (False,),
        "boundaries": ((),),
    } | allowed
    if config.tied_head:
        allowed["embedding_scale"] = (1.0,)
    values = {name: getattr(config, name) for name in allowed}
    return [
        f"model.{name}={value!r}"
        for name, value in values.items()
        if value not in allowed[name]
    ]


def _llama_obstacles(config: GPTConfig) -> list[str]:
    return _obstacles(
        config,
        {
            "norm": ("rms",),
            "feed_forward": tuple(_GATED),
            "positions": ("rotary",),
            "qkv_biases": (None, config.biases),
        },
    )


def _gpt2_obstacles(config: GPTConfig) -> list[str]:
    return _obstacles(
        config,
        {
            "norm": ("layer",),
            "feed_forward": tuple(_PLAIN),
            "positions": ("learned",),
            "biases": (True,),
            "qkv_biases": (None, True),
            "num_kv_heads": (None, config.num_heads),
        },
    )


def _to_llama(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config.num_layers * config.block_repeats,
        "hidden_size": config.model_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "hidden_act": _GATED[config.feed_forward],
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        # Where transformers before 5 look for it.
        "rope_theta": config.rope_base,
        "max_position_embeddings": config.sequence_length,
        "attention_bias": config.biases,
        "mlp_bias": config.biases,
    }


def _from_llama(theirs: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    kv_heads = theirs.get("num_key_value_heads") or heads
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    biases = theirs.get("attention_bias", False)
    _refuse(
        {
            "rope_type": rope.get("rope_type", rope.get("type", "default")),
            "head_dim": theirs.get("head_dim") or width // heads,
            "hidden_act": theirs["hidden_act"],
            "mlp_bias": theirs.get("mlp_bias", False),
        },
        {
            "rope_type": ("default",),
            "head_dim": (width // heads,),
            "hidden_act": tuple(_OUR_GATED),
            "mlp_bias": (biases,),
        },
    )
    return {
        "num_layers": theirs["num_hidden_layers"],
        "model_dim": width,
        "num_heads": heads,
        "num_kv_heads": None if kv_heads == heads else kv_heads,
        "ffn_dim": theirs["intermediate_size"],
        "feed_forward": _OUR_GATED[theirs["hidden_act"]],
        "norm": "rms",
        "norm_epsilon": theirs["rms_norm_eps"],
        "positions": "rotary",
        "rope_base": float(rope.get("rope_theta") or theirs.get("rope_theta", 10_000)),
        "biases": biases,
        "vocab_size": theirs["vocab_size"],
        "sequence_length": theirs["max_position_embeddings"],
        "tied_head": theirs.get("tie_word_embeddings", False),
    }


def _to_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.num_layers * config.block_repeats,
        "n_embd": config.model_dim,
        "n_head": config.num_heads,
        "n_inner": config.ffn_dim,
        "activation_function": _PLAIN[config.feed_forward],
        "layer_norm_epsilon": config.norm_epsilon,
        "n_positions": config.sequence_length,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _from_gpt2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(
        {
            "activation_function": theirs["activation_function"],
            "scale_attn_weights": theirs.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": theirs.get(
                "scale_attn_by_inverse_layer_idx", False
            ),
            "add_cross_attention": theirs.get("add_cross_attention", False),
        },
        {
            "activation_function": tuple(_OUR_PLAIN),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )
    return {
        "num_layers": theirs["n_layer"],
        "model_dim": theirs["n_embd"],
        "num_heads": theirs["n_head"],
        "ffn_dim": theirs.get("n_inner") or 4 * theirs["n_embd"],
        "feed_forward": _OUR_PLAIN[theirs["activation_function"]],
        "norm": "layer",
        "norm_epsilon": theirs["layer_norm_epsilon"],
        "positions": "learned",
        "biases": True,
        "vocab_size": theirs["vocab_size"],
        "sequence_length": theirs["n_positions"],
        "tied_head": theirs.get("tie_word_embeddings", True),
    }


def _refuse(values: Mapping[str, Any], allowed: Mapping[str, tuple]) -> None:
    wrong = [
        f"{name}={value!r} (we have {' and '.join(map(repr, allowed[name]))})"
        for name, value in values.items()
        if value not in allowed[name]
    ]
    if wrong:
        raise ValueError(f"config.json asks for {', '.join(wrong)}")
