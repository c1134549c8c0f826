"""All-reduce over real peers with parts that are rounded on the way."""

import asyncio

import numpy as np
import pytest

from swarm_jax.net.hivemind_allreduce import HivemindAllReduce
from tests.net.conftest import HEARTBEAT_S


@pytest.mark.parametrize(("wire", "bound"), [("float16", 4e-3), ("int8", 0.04)])
async def test_members_agree_to_the_bit_on_a_rounded_mean(nodes, wire, bound):
    taken = [await nodes.take() for _ in range(3)]
    protocol = f"wires{next(nodes.numbers)}"
    rounds = [
        await HivemindAllReduce.create(
            node, protocol, heartbeat_s=HEARTBEAT_S, wire=wire
        )
        for node in taken
    ]
    generator = np.random.default_rng(0)
    arrays = [[generator.standard_normal((400, 500)).astype(np.float32)] for _ in taken]
    names = [node.peer_id for node in taken]
    results = await asyncio.gather(
        *(
            allreduce.average("one", names, some, timeout_s=20.0)
            for allreduce, some in zip(rounds, arrays, strict=True)
        )
    )
    for allreduce, node in zip(rounds, taken, strict=True):
        await allreduce.close()
        nodes.free.append(node)
    assert len({result[0].tobytes() for result in results}) == 1
    exact = np.mean([some[0] for some in arrays], axis=0)
    error = np.abs(results[0][0] - exact).max()
    assert 0 < error <= bound
