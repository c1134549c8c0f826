"""How fast the wire's codecs are on this process's device, and what they lose."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from swarm_jax.stage.codec import WIRES, Codec, make_codec

# Shape suffixes: B microbatch, L sequence, D model dimension.

MB = 1_000_000
OUTLIER_CHANNELS, OUTLIER_SCALE = 64, 50.0
"""Every so many channels, one is so many times as large as the others."""

ROWS = (
    ("bytes per value", "bytes_per_value", "{:.4f}"),
    ("encode, ms", "encode_ms", "{:.3f}"),
    ("  MB/s", "encode_mb_per_s", "{:,.0f}"),
    ("decode, ms", "decode_ms", "{:.3f}"),
    ("  MB/s", "decode_mb_per_s", "{:,.0f}"),
    ("normal values: rms error", "rms_error", "{:.1e}"),
    ("  largest", "max_error", "{:.1e}"),
    ("outlier channels: rms error", "outlier_rms_error", "{:.1e}"),
    ("  largest", "outlier_max_error", "{:.1e}"),
    ("  rms error of the other channels", "ordinary_rms_error", "{:.1e}"),
)
"""Label, key and format."""


def codec_figures(shape_BLD: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Measures every codec but float64 on normal values of this shape.

    Returns:
        Of each codec: its name (``wire``), ``bytes_per_value``, medians ``encode_ms``
        and ``decode_ms`` and the speeds that follow, in 10^6 bytes of float32 values
        per second; and errors, the largest and the root of the mean square, both as a
        share of the root mean square of the values. ``outlier_*`` are of values with
        outlier channels, ``ordinary_*`` are of their other channels.
    """
    x_BLD = np.random.default_rng(0).standard_normal(shape_BLD, np.float32)
    outliers_BLD = x_BLD.copy()
    outliers_BLD[..., ::OUTLIER_CHANNELS] *= OUTLIER_SCALE
    figures = []
    for wire in WIRES:
        if wire == "float64":
            continue
        codec = make_codec(wire, x_BLD.shape, "float32")
        sent = sum(spec.size * spec.dtype.itemsize for spec in _shapes(codec, x_BLD))
        figures.append(
            {"wire": wire, "bytes_per_value": float(sent / x_BLD.size)}
            | _speeds(codec, x_BLD, repeats)
            | _errors(codec, x_BLD, outliers_BLD)
        )
    return figures


def codec_table(figures: Sequence[dict[str, Any]], shape_BLD: Sequence[int]) -> Table:
    """The figures for people."""
    table = Table(
        "",
        *(row["wire"] for row in figures),
        caption=f"{' x '.join(map(str, shape_BLD))} float32 values, whose 10^6 bytes "
        "MB are; medians, each call waited for. Errors are shares of the values' root "
        f"mean square. Outliers: one channel in {OUTLIER_CHANNELS} is "
        f"{OUTLIER_SCALE:.0f} times as large",
    )
    for label, key, form in ROWS:
        table.add_row(label, *(form.format(row[key]) for row in figures))
    return table


def _shapes(codec: Codec, x_BLD: np.ndarray) -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.eval_shape(codec.encode, x_BLD)


def _speeds(codec: Codec, x_BLD: np.ndarray, repeats: int) -> dict[str, float]:
    arrays = jax.block_until_ready(jax.jit(codec.encode)(x_BLD))
    encode_s = _median_s(jax.jit(codec.encode), jax.device_put(x_BLD), repeats)
    decode_s = _median_s(jax.jit(codec.decode), arrays, repeats)
    return {
        "encode_ms": 1e3 * encode_s,
        "decode_ms": 1e3 * decode_s,
        "encode_mb_per_s": x_BLD.nbytes / MB / encode_s,
        "decode_mb_per_s": x_BLD.nbytes / MB / decode_s,
    }


def _median_s(program: Callable[[Any], Any], argument: Any, repeats: int) -> float:
    """Of calls after the first one, which compiles."""
    jax.block_until_ready(program(argument))
    times_s = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        jax.block_until_ready(program(argument))
        times_s.append(time.perf_counter() - began_s)
    return statistics.median(times_s)


def _errors(
    codec: Codec, x_BLD: np.ndarray, outliers_BLD: np.ndarray
) -> dict[str, float]:
    there_and_back = jax.jit(lambda x_BLD: codec.decode(codec.encode(x_BLD)))
    is_ordinary_D = np.arange(x_BLD.shape[-1]) % OUTLIER_CHANNELS != 0
    figures = {}
    for name, values_BLD in (("", x_BLD), ("outlier_", outliers_BLD)):
        error_BLD, scale = there_and_back(values_BLD) - values_BLD, _rms(values_BLD)
        figures[f"{name}rms_error"] = _rms(error_BLD) / scale
        figures[f"{name}max_error"] = float(abs(error_BLD).max()) / scale
    error_BLD = np.asarray(error_BLD)[..., is_ordinary_D]
    scale = _rms(outliers_BLD[..., is_ordinary_D])
    return figures | {"ordinary_rms_error": _rms(error_BLD) / scale}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
