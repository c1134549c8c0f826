"""What the network processes share: joining the swarm, stopping, logging."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from swarm_jax.config import ExperimentConfig
from swarm_jax.core.bans import Bans
from swarm_jax.errors import StartupError
from swarm_jax.launcher import commands, flags
from swarm_jax.launcher.signals import stop_signals
from swarm_jax.metrics import write_json
from swarm_jax.net.hivemind_allreduce import HivemindAllReduce
from swarm_jax.net.hivemind_calls import HivemindCalls
from swarm_jax.net.hivemind_directory import HivemindDirectory
from swarm_jax.net.hivemind_node import HivemindNode, start_node
from swarm_jax.net.wire import SILENT_HEARTBEATS
from swarm_jax.roles.messages import Status, refusal

T = TypeVar("T")

logger = logging.getLogger(__name__)

THREAD_SWITCH_S = 5e-4
"""Python's default lets jax's tracing hold up the network for tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class Network:
    """The hivemind adapters of this process."""

    node: HivemindNode
    calls: HivemindCalls
    directory: HivemindDirectory
    allreduce: HivemindAllReduce


@contextlib.asynccontextmanager
async def joined(
    args: argparse.Namespace, config: ExperimentConfig
) -> AsyncIterator[Network]:
    """Joins the swarm that ``--initial_peers`` names, and leaves it in the end.

    Raises:
        StartupError: It cannot, for a reason that the message names.
    """
    sys.setswitchinterval(THREAD_SWITCH_S)
    node = await start_node(
        initial_peers=args.initial_peers,
        host_maddrs=args.host_maddrs,
        announce_maddrs=args.announce_maddrs,
        identity_path=args.identity_path,
        silence_s=SILENT_HEARTBEATS * config.tuning.heartbeat_s,
        bans=Bans(config.tuning.ban_s, config.tuning.max_ban_s),
    )
    protocol = f"swarm_jax.{config.run_id}.{config.swarm_fingerprint()}"
    calls = HivemindCalls(
        node,
        protocol,
        heartbeat_s=config.tuning.heartbeat_s,
        max_message_bytes=config.tuning.max_message_bytes,
        busy=refusal(Status.BUSY),
        same_host=config.tuning.same_host,
    )
    async with contextlib.AsyncExitStack() as closing:
        closing.push_async_callback(node.close)
        closing.push_async_callback(calls.close)
        allreduce = await HivemindAllReduce.create(
            node,
            f"{protocol}.allreduce",
            heartbeat_s=config.tuning.heartbeat_s,
            join_timeout_s=config.tuning.allreduce_timeout_s,
            same_host=config.tuning.same_host,
            wire=config.swarm.allreduce_wire,
        )
        closing.push_async_callback(allreduce.close)
        yield Network(node, calls, HivemindDirectory(node), allreduce)


async def until_stopped(
    work: Awaitable[T],
    node: HivemindNode,
    *,
    notice: Awaitable[str] | None = None,
    leave: Callable[[], Awaitable[object]] | None = None,
) -> T | signal.Signals | None:
    """Runs ``work`` to its end, or until a signal or a notice ends it.

    Args:
        notice: Ends when this machine is about to be taken away.
        leave: Called then, while ``work`` goes on, and waited for. A second signal, or
            SIGHUP, ends it at once.

    Returns:
        What ``work`` gave, or the first signal; None after a notice.

    Raises:
        StartupError: The network daemon died under it.
    """
    stop, now = asyncio.Event(), asyncio.Event()
    heard: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def hear(number: signal.Signals) -> None:
        at_once = heard or number == signal.SIGHUP
        heard.append(number)
        (now if at_once else stop).set()

    for number in stop_signals():
        loop.add_signal_handler(number, hear, number)
    working, dying = asyncio.ensure_future(work), asyncio.ensure_future(node.died())
    ended = [working, dying, asyncio.ensure_future(now.wait())]
    asked = [asyncio.ensure_future(stop.wait())]
    if notice is not None:
        asked.append(asyncio.ensure_future(_log_notice(notice)))
    try:
        await _first_of(*ended, *asked)
        if leave is not None and not any(task.done() for task in ended):
            if heard:
                logger.info("%s: this peer hands over what it holds", heard[0].name)
            asked.append(asyncio.ensure_future(leave()))
            await _first_of(*ended, asked[-1])
        if working.done():
            return _result(working)
        if dying.done():
            raise StartupError(dying.result())
        return heard[0] if heard else None
    finally:
        for task in (*ended, *asked):
            task.cancel()
        await asyncio.wait([*ended, *asked])


async def _first_of(*tasks: asyncio.Future) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _log_notice(notice: Awaitable[str]) -> None:
    logger.warning("notice of preemption: %s", await notice)


def _result(task: asyncio.Future[T]) -> T:
    """The task's result; of a group of one exception, that exception."""
    error = task.exception()
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if error is not None:
        raise error
    return task.result()


def restart_permission(flag: bool) -> Callable[[], bool]:
    """Whether a run that lost a stage may start again: by flag, or typed at a terminal.

    What is typed holds from then on, as the flag does from the start.
    """
    allowed = [flag]

    def typed() -> None:
        line = sys.stdin.readline()
        if line.strip() == "restart":
            allowed[0] = True
        if not line:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    if sys.stdin is not None and sys.stdin.isatty():
        asyncio.get_running_loop().add_reader(sys.stdin, typed)
    return lambda: allowed[0]


def log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """jax tells of each program, Orbax (by absl) of each layer. Not by their loggers'
    levels, since hivemind renames WARNING, and jax, when imported after that, knows no
    level of the new name."""
    is_library = record.name.startswith(("jax", "absl"))
    return record.levelno >= logging.WARNING or not is_library


def announce_ready(args: argparse.Namespace, node: HivemindNode) -> None:
    """Writes ``--ready_file``: this process can be reached."""
    if args.ready_file is not None:
        maddrs = node.visible_maddrs()
        write_json(args.ready_file, {"peer_id": node.peer_id, "initial_peers": maddrs})


def initial_peers(args: argparse.Namespace, node: HivemindNode) -> list[str]:
    """What the next machine is told: the same as this one, or this one itself."""
    return list(args.initial_peers) or commands.reachable(node.visible_maddrs())[:1]


def server_command(
    args: argparse.Namespace, node: HivemindNode, stage: int | str
) -> str:
    return commands.server_command(
        flags.experiment_arguments(args),
        stage,
        initial_peers(args, node),
        str(args.workdir),
    )


def trainer_command(args: argparse.Namespace, node: HivemindNode) -> str:
    return commands.trainer_command(
        flags.experiment_arguments(args), initial_peers(args, node), str(args.workdir)
    )
