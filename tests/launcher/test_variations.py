"""What a sweep consists of: the grammar of --vary, named variants, bad input."""

import textwrap

import pytest

from swarm_jax.config import load_config
from swarm_jax.errors import ConfigError
from swarm_jax.launcher.variations import make_variations, parse_vary

CONFIG = """
from configs import tiny


def get_config():
    return tiny.get_config()


def variants():
    wide, low = get_config(), get_config()
    wide.model.ffn_dim = 1024
    low.swarm.wire = "bfloat16"
    low.swarm.layers_per_stage = (1, 1, 4)
    return {"base": get_config(), "wide": wide, "low": low}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("seed=1", "seed", ["1"]),
        ("a.b=2,4", "a.b", ["2", "4"]),
        ("a=(2, 4),(4,),None", "a", ["(2, 4)", "(4,)", "None"]),
        ("a=[1,(2,3)],{4,5}", "a", ["[1,(2,3)]", "{4,5}"]),
        ("wire=int8, float32", "wire", ["int8", "float32"]),
        ("a='x,y',\"(\"", "a", ["'x,y'", '"("']),
        ("corpus=files:a=b", "corpus", ["files:a=b"]),
    ],
)
def test_commas_outside_of_brackets_and_quotes_separate_values(text, field, values):
    assert parse_vary(text) == (field, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "write FIELD=VALUE"),
        ("seed=", "write FIELD=VALUE"),
        ("=1", "write FIELD=VALUE"),
        ("seed=1,,2", "write FIELD=VALUE"),
        ("a=(1,2", r"there is no closing \)"),
        ("a='1,2", "there is no closing '"),
    ],
)
def test_what_is_no_list_of_values_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_vary(text)


def test_fields_give_all_combinations_and_seeds_share_a_label(path):
    made = make_variations(
        path, ["--config.steps=40"], ["model.ffn_dim=256,512", "seed=1,2"], None
    )
    assert [(v.label, v.name) for v in made] == [
        ("ffn_dim=256", "ffn_dim=256,seed=1"),
        ("ffn_dim=256", "ffn_dim=256,seed=2"),
        ("ffn_dim=512", "ffn_dim=512,seed=1"),
        ("ffn_dim=512", "ffn_dim=512,seed=2"),
    ]
    last = made[-1].config
    assert (last.steps, last.model.ffn_dim, last.seed) == (40, 512, 2)


def test_the_overrides_of_a_variation_make_its_config(path):
    for variation in make_variations(path, [], ["seed=1,2"], "all"):
        assert load_config(path, variation.overrides) == variation.config


def test_named_variants_are_what_the_config_file_makes(path):
    made = make_variations(path, [], ["seed=1,2"], "wide,low")
    assert [v.name for v in made] == [
        *("wide,seed=1", "low,seed=1"),
        *("wide,seed=2", "low,seed=2"),
    ]
    wide, low = made[0].config, made[1].config
    assert (wide.model.ffn_dim, wide.swarm.wire) == (1024, "float32")
    assert (low.model.ffn_dim, low.swarm.wire) == (512, "bfloat16")
    assert low.swarm.layers_per_stage == (1, 1, 4)
    assert [v.name for v in make_variations(path, [], [], "all")] == [
        *("base", "wide", "low"),
    ]


def test_what_is_typed_overrules_a_variant(path):
    (low,) = make_variations(path, ["--config.swarm.wire=float32"], [], "low")
    assert low.config.swarm.wire == "float32"
    (wide,) = make_variations(path, [], ["model.ffn_dim=64"], "wide")
    assert wide.config.model.ffn_dim == 64
    assert wide.label == "wide,ffn_dim=64"


def test_only_seeds_are_varied(path):
    made = make_variations(path, [], ["seed=3,4"], None)
    assert [(v.label, v.name) for v in made] == [
        *(("tiny", "tiny,seed=3"), ("tiny", "tiny,seed=4")),
    ]


def test_fields_of_one_name_are_told_apart_and_names_are_file_names(path):
    vary = ["checkpoint.every_steps=5", "validation.every_steps=7"]
    vary += ["data.corpus='files:/a b/*.txt'"]
    (made,) = make_variations(path, [], vary, None)
    assert made.name == (
        "checkpoint.every_steps=5,validation.every_steps=7,corpus=_files_a_b_.txt_"
    )


@pytest.mark.parametrize(
    ("overrides", "vary", "variants", "message"),
    [
        ([], [], None, "Nothing to vary"),
        ([], ["seeds=1"], None, "seeds=1: Unknown config field 'seeds'. Did you mean"),
        ([], ["seed=1", "seed=2"], None, "seed is given twice"),
        (["--config.seed=1"], ["seed=2"], None, "seed is given twice"),
        ([], ["seed=1,1"], None, "2 runs would have the same run folder, tiny,seed=1"),
        ([], ["swarm.wire=int3"], "low", "low --config.swarm.wire=int3: swarm.wire="),
        ([], [], "broad", "has no variant 'broad'. It has: base, wide, low"),
    ],
)
def test_bad_input_is_answered(path, overrides, vary, variants, message):
    with pytest.raises(ConfigError, match=message):
        make_variations(path, overrides, vary, variants)


def test_a_config_without_variants_says_so():
    with pytest.raises(ConfigError, match=r"tiny.py has no function variants\(\)"):
        make_variations("configs/tiny.py", [], [], "all")
