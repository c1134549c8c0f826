"""What travels between stages: an activation, or its gradient, as raw arrays.

A codec works inside ``jit``, so that what leaves the device is already as small as it
will be on the wire. Values that are not finite stay so: a receiver gets something that
is not finite where its sender had it, and a sender sees it in the encoded arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from swarm_jax.stage import codec_dynamic8, codec_int8

# Shape suffixes: B microbatch, L sequence, D model dimension.

Specs = tuple[tuple[str, tuple[int, ...]], ...]
"""dtype name and shape of each array."""

CASTS = ("float32", "bfloat16", "float64")
BLOCKWISE = {"int8": codec_int8, "dynamic8": codec_dynamic8}
WIRES = (*CASTS, *BLOCKWISE)


@dataclass(frozen=True, slots=True)
class Codec:
    """Attributes:
    specs: dtype name and shape of each encoded array.
    encode: ``encode(x_BLD) -> arrays``; jittable.
    decode: ``decode(arrays) -> x_BLD`` in the dtype that the stages compute in;
        jittable. It takes any bytes of these specs.
    """

    specs: Specs
    encode: Callable[[jax.Array], tuple[jax.Array, ...]]
    decode: Callable[[Sequence[jax.Array]], jax.Array]


@dataclass(frozen=True, slots=True)
class BoundaryCodec:
    """Both directions of one boundary between stages.

    Attributes:
        activations: Of what goes to the later stage.
        gradients: Of what comes back.
    """

    activations: Codec
    gradients: Codec


def make_codec(wire: str, shape_BLD: tuple[int, ...], dtype: str) -> Codec:
    """The codec named ``wire`` for arrays of one shape.

    Args:
        wire: One of ``WIRES``: a dtype to cast to, or "int8" or "dynamic8", whose
            files say what they do.
        dtype: dtype of the arrays inside the stages.

    Raises:
        ValueError: No codec has this name, or it needs 64-bit arrays.
    """
    if wire not in WIRES:
        raise ValueError(f"no codec is named {wire!r}: use one of {WIRES}")
    if wire == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("a float64 wire needs 64-bit arrays: set JAX_ENABLE_X64=1")
    shape_BLD = tuple(shape_BLD)
    if wire in CASTS:
        return Codec(
            specs=((wire, shape_BLD),),
            encode=lambda x_BLD: (_rounded(x_BLD, wire).astype(wire),),
            decode=lambda arrays: jnp.asarray(arrays[0]).astype(dtype),
        )
    blockwise = BLOCKWISE[wire]
    return Codec(
        specs=blockwise.specs(shape_BLD),
        encode=lambda x_BLD: blockwise.encode(x_BLD.astype("float32")),
        decode=lambda arrays: blockwise.decode(*map(jnp.asarray, arrays)).astype(dtype),
    )


def make_boundary_codec(
    wires: tuple[str, str], shape_BLD: tuple[int, ...], dtype: str
) -> BoundaryCodec:
    """Both directions of a boundary.

    Args:
        wires: Of the activations and of their gradients, as in ``make_codec``.

    Raises:
        ValueError: As in ``make_codec``.
    """
    return BoundaryCodec(*(make_codec(wire, shape_BLD, dtype) for wire in wires))


def shapes_of(specs: Specs) -> tuple[jax.ShapeDtypeStruct, ...]:
    """For programs that are compiled before there are arrays."""
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(name)) for name, shape in specs)


def straight_through(codec: BoundaryCodec) -> Callable[[jax.Array], jax.Array]:
    """What a boundary does to what crosses it, inside one program.

    Returns:
        ``cross(x_BLD) -> x_BLD``, encoded and decoded; so is its gradient, which is
        that of the identity.
    """

    def through(codec: Codec, x_BLD: jax.Array) -> jax.Array:
        return codec.decode(codec.encode(x_BLD))

    @jax.custom_vjp
    def cross(x_BLD: jax.Array) -> jax.Array:
        return through(codec.activations, x_BLD)

    cross.defvjp(
        lambda x_BLD: (cross(x_BLD), None),
        lambda _, grad_BLD: (through(codec.gradients, grad_BLD),),
    )
    return cross


def _rounded(x: jax.Array, dtype: str) -> jax.Array:
    """Rounds to the values of a narrower dtype, without changing the dtype.

    A cast there and back would be left out by XLA, which allows itself more precision
    than was asked for; not so this.
    """
    narrow, wide = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.nmant >= wide.nmant:
        return x
    return jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
