"""Where a device's time goes."""

import jax
import jax.numpy as jnp
import pytest

from scripts.kernel_times import REST, Kernel, kernel_figures, kernel_table, summed


def test_kernels_are_summed_by_kind_and_gaps_are_idle():
    kernels = [
        Kernel("dot.1", "matrix products", 0.0, 4e6),
        Kernel("add.2", REST, 3e6, 5e6),  # beside the first
        Kernel("dot.1", "matrix products", 6e6, 8e6),
    ]
    figures = summed(kernels, calls=2)
    assert figures["ms"] == pytest.approx(4.0)
    assert figures["kinds"] == pytest.approx(
        {"matrix products": 3.0, REST: 1.0, "idle": 0.5}
    )
    assert [kernel["runs"] for kernel in figures["kernels"]] == [1.0, 0.5]
    table = kernel_table([{"case": "there and back"} | figures])
    assert table.row_count == 1 + 3 + 2


def test_a_program_is_profiled():
    @jax.jit
    def program(x):
        return jnp.tanh(x @ x).sum(axis=0)

    figures = kernel_figures(lambda: program(jnp.ones((300, 300))), calls=2)
    assert figures["kinds"]["matrix products"] > 0
    assert 0 <= figures["kinds"]["idle"] < figures["ms"]
    assert all(kernel["ms"] > 0 for kernel in figures["kernels"])
