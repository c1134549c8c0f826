"""Models that transformers made, in ours and back: equal logits."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from models.config import GPTConfig
from models.functional import from_layers, make_stage, to_layers
from models.hugging_face import GPT2, LAYOUTS, LLAMA, exported, imported
from models.hugging_face_config import (
    differences,
    fitting_fields,
    layout_of,
    to_hugging_face,
)
from models.safetensors_files import Weights, read_config, write_model
from swarm_jax.stage.export import flat_layers
from swarm_jax.stage.layered import nested

LENGTH, VOCABULARY = 12, 29

LLAMA_LIKE = GPTConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=24,
    feed_forward="swiglu",
    norm_epsilon=1e-3,
    rope_base=100.0,
    vocab_size=VOCABULARY,
    sequence_length=LENGTH,
)
GPT2_LIKE = GPTConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    ffn_dim=24,
    norm="layer",
    norm_epsilon=1e-3,
    positions="learned",
    biases=True,
    tied_head=True,
    vocab_size=VOCABULARY,
    sequence_length=LENGTH,
)
EXPORTED = {
    "llama": LLAMA_LIKE,
    "llama, all that it can hold": dataclasses.replace(
        LLAMA_LIKE,
        feed_forward="geglu",
        biases=True,
        block_repeats=2,
        embedding_scale=3.0,
        vocab_multiple=8,
    ),
    "gpt2": GPT2_LIKE,
    "gpt2, all that it can hold": dataclasses.replace(
        GPT2_LIKE, feed_forward="relu", tied_head=False, block_repeats=2
    ),
}


@pytest.fixture(scope="module")
def transformers():
    """The library; it may not ask anybody for anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.utils.logging.disable_progress_bar()
        yield transformers


@pytest.fixture(scope="module")
def tokens_BL():
    generator = np.random.default_rng(0)
    return generator.integers(0, VOCABULARY, (2, LENGTH), dtype=np.int32)


def whole(config):
    return make_stage(config, 0, config.num_layers)


def shapes_of(config):
    layers = jax.eval_shape(lambda: to_layers(whole(config).init(0), 0))
    return {
        layer: {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for layer, tree in layers.items()
    }


def random_layers(config, seed=0):
    """Arrays with nothing that is 0 or 1 by chance of the initialisation."""
    generator = np.random.default_rng(seed)
    return {
        layer: {
            name: generator.normal(scale=0.3, size=shape).astype(np.float32)
            for name, shape in arrays.items()
        }
        for layer, arrays in shapes_of(config).items()
    }


def our_logits(config, layers, tokens_BL):
    params = from_layers({name: nested(arrays) for name, arrays in layers.items()})
    return np.asarray(jax.jit(whole(config).logits)(params, tokens_BL))


def their_logits(transformers, folder, tokens_BL):
    """Every tensor of the file must have found its place, and every place a tensor."""
    import torch

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        tokens = torch.from_numpy(tokens_BL).long()
        return model.eval()(tokens).logits.numpy()


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_exported_gives_equal_logits(name, transformers, tmp_path, tokens_BL):
    config = EXPORTED[name]
    layers = random_layers(config)
    tensors = dict(exported(layout_of(config), config, layers))
    write_model(tmp_path, to_hugging_face(config, end_of_text=3), tensors)
    found_BLV = their_logits(transformers, tmp_path, tokens_BL)
    expected_BLV = our_logits(config, layers, tokens_BL)
    assert np.std(expected_BLV) > 0.1
    np.testing.assert_allclose(found_BLV, expected_BLV, rtol=1e-5, atol=1e-5)


def make_llama(transformers, **options):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
            **options,
        )
    )


def make_gpt2(transformers, **options):
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
            **options,
        )
    )


def convert(folder, config):
    weights = Weights(folder)
    layout = LAYOUTS[read_config(folder)["model_type"]]
    layers = {
        layer: imported(layout, config, layer, shapes, weights.read)
        for layer, shapes in shapes_of(config).items()
    }
    return layers, weights.unread


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_llama, {"tie_word_embeddings": True}),
        (make_llama, {"attention_bias": True, "mlp_bias": True}),
        (make_gpt2, {}),
        (make_gpt2, {"n_inner": 24, "tie_word_embeddings": False}),
    ],
)
def test_what_is_imported_gives_equal_logits(
    make, options, transformers, tmp_path, tokens_BL
):
    make(transformers, **options).save_pretrained(tmp_path)
    fields = fitting_fields(read_config(tmp_path))
    assert fields["sequence_length"] == 32
    padded = {"sequence_length": LENGTH, "vocab_multiple": 8}
    config = GPTConfig(**fields | padded)
    assert differences(config, read_config(tmp_path)) == []
    layers, unread = convert(tmp_path, config)
    assert not unread
    found_BLV = our_logits(config, layers, tokens_BL)
    expected_BLV = their_logits(transformers, tmp_path, tokens_BL)
    assert np.std(expected_BLV) > 0.1
    np.testing.assert_allclose(found_BLV, expected_BLV, rtol=1e-5, atol=1e-5)


def test_shards_and_bfloat16_are_read_alike(transformers, tmp_path):
    model = make_llama(transformers).bfloat16()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="2KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    config = GPTConfig(**fitting_fields(read_config(tmp_path / "one")))
    one, _ = convert(tmp_path / "one", config)
    many, unread = convert(tmp_path / "many", config)
    assert not unread
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert {array.dtype.name for array in flat_layers(one).values()} == {"float32"}


def test_names_without_their_first_part_are_read_too(tmp_path):
    layers = random_layers(GPT2_LIKE)
    tensors = dict(exported(GPT2, GPT2_LIKE, layers))
    bare = {name.removeprefix("transformer."): a for name, a in tensors.items()}
    write_model(tmp_path, to_hugging_face(GPT2_LIKE, None), bare)
    found, unread = convert(tmp_path, GPT2_LIKE)
    assert not unread
    jax.tree.map(np.testing.assert_array_equal, found, layers)


def test_differences_name_each_field_that_the_weights_decide():
    theirs = to_hugging_face(LLAMA_LIKE, None)
    free = {"compute_dtype": "bfloat16", "sequence_length": 8, "vocab_multiple": 64}
    assert differences(dataclasses.replace(LLAMA_LIKE, **free), theirs) == []
    same = dataclasses.replace(LLAMA_LIKE, qkv_biases=False, boundary="maxout")
    assert differences(same, theirs) == []
    others = {
        "num_layers": 3,
        "num_kv_heads": 4,
        "rope_base": 10.0,
        "qkv_biases": True,
        "sequence_length": 13,
        "boundaries": (1,),
    }
    found = differences(dataclasses.replace(LLAMA_LIKE, **others), theirs)
    assert found == [
        "model.num_layers is 3, the weights' is 2",
        "model.kv_heads is 4, the weights' is 2",
        "model.rope_base is 10.0, the weights' is 100.0",
        "model.attention_biases is True, the weights' is False",
        "model.boundaries is (1,), the weights' is ()",
        "model.sequence_length is 13, the weights' is 12 at most",
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": "sinusoidal"}, "model.positions='sinusoidal'"),
        ({"boundaries": (1,)}, r"model.boundaries=\(1,\)"),
        ({"embedding_norm": True}, "model.embedding_norm=True"),
        ({"qkv_biases": True}, "model.qkv_biases=True"),
        ({"head_bias": True}, "model.head_bias=True"),
        ({"tied_head": True, "embedding_scale": 2.0}, "model.embedding_scale=2.0"),
    ],
)
def test_a_model_that_no_layout_holds_is_told_why(change, named):
    with pytest.raises(ValueError, match=f"for llama {named}; for gpt2"):
        layout_of(dataclasses.replace(LLAMA_LIKE, **change))


@pytest.mark.parametrize(
    ("like", "change", "named"),
    [
        (LLAMA_LIKE, {"model_type": "mixtral"}, "model_type='mixtral'"),
        (LLAMA_LIKE, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (LLAMA_LIKE, {"head_dim": 8}, "head_dim=8"),
        (LLAMA_LIKE, {"mlp_bias": True}, "mlp_bias=True"),
        (
            LLAMA_LIKE,
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "rope_type='llama3'",
        ),
        (GPT2_LIKE, {"activation_function": "gelu"}, "activation_function='gelu'"),
        (GPT2_LIKE, {"add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_a_config_that_we_cannot_be_is_told_why(like, change, named):
    with pytest.raises(ValueError, match=named):
        fitting_fields(to_hugging_face(like, None) | change)


def test_a_config_without_a_field_is_told_which():
    theirs = to_hugging_face(GPT2_LIKE, None)
    del theirs["n_layer"]
    with pytest.raises(ValueError, match="lacks 'n_layer'"):
        fitting_fields(theirs)


@pytest.fixture
def folder(tmp_path):
    """A model of the Llama layout."""
    tensors = dict(exported(LLAMA, LLAMA_LIKE, random_layers(LLAMA_LIKE)))
    write_model(tmp_path, to_hugging_face(LLAMA_LIKE, None), tensors)
    return tmp_path


def test_a_wrong_shape_is_found(folder):
    wider = dataclasses.replace(LLAMA_LIKE, ffn_dim=32)
    with pytest.raises(ValueError, match=r"mlp.gate_proj.weight make .*\(16, 24\)"):
        convert(folder, wider)


def test_files_that_cannot_be_read_are_told_apart(folder):
    single = folder / "model.safetensors"
    whole_file = single.read_bytes()
    single.write_bytes(whole_file[:1000])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        Weights(folder)
    single.unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        Weights(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model-00001-of-00002.safetensors"):
        Weights(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is no JSON"):
        read_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no config.json"):
        read_config(folder)


def test_a_missing_tensor_is_named(folder):
    with pytest.raises(ValueError, match="holds no tensor model.layers.7.x"):
        Weights(folder).read("model.layers.7.x")
