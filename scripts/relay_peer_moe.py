"""Blocks of the model behind ``hivemind.moe``, and clients of them.

Nothing here may load jax: hivemind.moe forks.
"""

import argparse
import json
import signal
import tempfile
import threading
import time

import torch
from hivemind import DHT
from hivemind.moe.client.expert import RemoteExpert
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.moe.server import ModuleBackend, Server
from hivemind.p2p import P2P, PeerID
from hivemind.proto.runtime_pb2 import CompressionType
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import Tensor, nn

from models.torch_layers import Block, make_rotation
from scripts.stages import stage_layers
from swarm_jax.config import ExperimentConfig
from swarm_jax.errors import ConfigError
from swarm_jax.metrics import write_json

# Shape suffixes: B microbatch, L sequence, D model dimension.

HANDLERS = 8

# Else in /tmp, where they stay when their process is killed.
P2P._UNIX_SOCKET_PREFIX = f"/unix{tempfile.gettempdir()}/"


class Blocks(nn.Module):
    """The blocks of one stage; bfloat16 products on a GPU, float32 at its edges."""

    def __init__(self, config: ExperimentConfig, stage: int, device: str):
        super().__init__()
        count = stage_layers(config)[stage].num_layers
        self.blocks = nn.ModuleList(Block(config.model) for _ in range(count))
        rotary = config.model.positions == "rotary"
        rotation = make_rotation(config.model) if rotary else None
        self.register_buffer("rotation", rotation, persistent=False)
        self.device = device

    def forward(self, x_BLD: Tensor) -> Tensor:
        on_gpu = self.device == "cuda"
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=on_gpu):
            for block in self.blocks:
                x_BLD = block(x_BLD, self.rotation)
        return x_BLD.float()


def serve(args: argparse.Namespace, config: ExperimentConfig) -> None:
    """Serves a stage until a signal ends it."""
    device = "cpu" if args.device == "cpu" else "cuda"
    module = Blocks(config, args.serve, device)
    model, batch = config.model, config.swarm.microbatch_size
    descriptor = BatchTensorDescriptor(
        model.sequence_length,
        model.model_dim,
        compression=getattr(CompressionType, args.wire),
    )
    dht = DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    backend = ModuleBackend(
        name=_name(args.serve),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.0),
        args_schema=(descriptor,),
        outputs_schema=descriptor,
        min_batch_size=1,
        max_batch_size=batch,
    )
    server = Server(
        dht=dht,
        module_backends={backend.name: backend},
        num_connection_handlers=HANDLERS,
        device=device,
    )
    server.run_in_background(await_ready=True)
    maddrs = [str(maddr) for maddr in dht.get_visible_maddrs()]
    record = {"peer_id": dht.peer_id.to_base58(), "initial_peers": maddrs}
    write_json(args.ready_file, record)
    signal.pause()


def tokens_per_s(args: argparse.Namespace, config: ExperimentConfig) -> float:
    """Speed of ``args.clients`` threads that each have one microbatch under way."""
    torch.set_num_threads(1)
    records = [json.loads(path.read_text()) for path in args.servers]
    maddrs = [maddr for record in records for maddr in record["initial_peers"]]
    p2p = RemoteExpertWorker.run_coroutine(P2P.create(initial_peers=maddrs))
    experts = [
        RemoteExpert(
            ExpertInfo(_name(stage), PeerID.from_base58(record["peer_id"])), p2p
        )
        for stage, record in enumerate(records)
    ]
    model, batch = config.model, config.swarm.microbatch_size
    start_BLD = torch.randn(batch, model.sequence_length, model.model_dim)
    warm = threading.Barrier(args.clients + 1)
    done_s: list[float] = []
    failures: list[Exception] = []
    ending = threading.Event()

    def there_and_back() -> None:
        x_BLD = start_BLD.clone().requires_grad_(True)
        for expert in experts:
            x_BLD = expert(x_BLD)
        x_BLD.sum().backward()

    def client() -> None:
        try:
            there_and_back()
            warm.wait()
            while not ending.is_set():
                there_and_back()
                done_s.append(time.perf_counter())
        except Exception as error:
            failures.append(error)
            warm.abort()
            ending.set()

    threads = [threading.Thread(target=client) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    try:
        warm.wait()
        started_s = time.perf_counter()
        ending.wait(args.seconds)
    except threading.BrokenBarrierError:
        pass
    ending.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    within_s = sorted(end_s for end_s in done_s if end_s <= started_s + args.seconds)
    if len(within_s) < 2:
        raise ConfigError(
            f"{len(within_s)} microbatches in {args.seconds:g} s are too few: use more "
            "--seconds"
        )
    # From the end of one to the end of another: nothing is begun and not counted.
    rate = (len(within_s) - 1) / (within_s[-1] - within_s[0])
    return rate * batch * model.sequence_length


def _name(stage: int) -> str:
    return f"stage.{stage}"
