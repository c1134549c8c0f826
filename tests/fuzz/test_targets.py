"""Every fuzz target with hypothesis: a share of what ``make fuzz`` does, in seconds."""

import gc
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.fuzz_targets import TARGETS, seeds

SLOW = ("server", "caller", "callee")
WARM_UP, CASES = 100, 300
MAX_GROWTH_BYTES = 256 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_well_formed_input_passes(name):
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing(name):
    @settings(
        max_examples=150 if name in SLOW else 600,
        deadline=None,
        derandomize=True,
        database=None,
    )
    @given(st.sampled_from(seeds(name)), st.binary(max_size=60), st.integers(0, 20))
    def run(seed, junk, cut):
        TARGETS[name](seed[:cut] + junk)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_memory_does_not_grow(name):
    generator = random.Random(name)

    def run(cases: int) -> None:
        for _ in range(cases):
            seed = generator.choice(seeds(name))
            junk = generator.randbytes(generator.randrange(40))
            TARGETS[name](seed[: generator.randrange(1, 20)] + junk)

    run(WARM_UP)
    gc.collect()
    tracemalloc.start()
    run(CASES // 10 if name == "server" else CASES)
    gc.collect()
    grown_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown_bytes < MAX_GROWTH_BYTES
