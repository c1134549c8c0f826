"""A stage peer that only closes steps: one process of ``scripts.benchmark close``."""

import asyncio
import time
from multiprocessing.connection import Connection

import numpy as np

from swarm_jax.net.hivemind_allreduce import HivemindAllReduce
from swarm_jax.net.hivemind_node import start_node

PATIENT_S = 600.0
LEAVES = 8


def main(
    pipe: Connection, number: int, maddrs: tuple[str, str], num_bytes: int, wire: str
) -> None:
    """Says who and where it is, is told who its peers are, and averages when told.

    Args:
        pipe: Gives this peer's id and addresses; takes its ``initial_peers``, then the
            members, then group ids, until None. For each id it gives the seconds that
            the round took, and the largest error of the mean.
        number: Of this peer, from 0; seeds its gradient.
        maddrs: Where it listens, and what it announces.
        num_bytes: Of its float32 gradient.
    """
    asyncio.run(_serve(pipe, number, maddrs, num_bytes, wire))


async def _serve(pipe, number, maddrs, num_bytes, wire) -> None:
    hear = asyncio.to_thread
    node = await start_node(
        initial_peers=await hear(pipe.recv),
        host_maddrs=[maddrs[0]],
        announce_maddrs=[maddrs[1]],
        silence_s=PATIENT_S,
    )
    allreduce = await HivemindAllReduce.create(
        node,
        "close",
        heartbeat_s=PATIENT_S,
        join_timeout_s=PATIENT_S,
        wire=wire,
        same_host=False,
    )
    pipe.send((node.peer_id, node.visible_maddrs()))
    members = await hear(pipe.recv)
    gradient = _gradient(number, num_bytes)
    exact = sum(_gradient(i, num_bytes)[0] for i in range(len(members))) / len(members)
    pipe.send("ready")
    while (group := await hear(pipe.recv)) is not None:
        began_s = time.perf_counter()
        mean = await allreduce.average(group, members, gradient, timeout_s=PATIENT_S)
        took_s = time.perf_counter() - began_s
        pipe.send((took_s, float(np.abs(mean[0] - exact).max())))
    await allreduce.close()
    await node.close()


def _gradient(number: int, num_bytes: int) -> list[np.ndarray]:
    """Normal values; all leaves are the same, the first one is looked at."""
    size = num_bytes // 4 // LEAVES
    leaf = np.random.default_rng(number).standard_normal(size, np.float32)
    return [leaf] * LEAVES
