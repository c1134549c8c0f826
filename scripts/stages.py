"""Which layers make up which stage of an experiment, and what they cost."""

from models.flops import layer_flops
from swarm_jax.config import ExperimentConfig
from swarm_jax.core.partition import StageLayers, partition_layers


def stage_layers(config: ExperimentConfig) -> tuple[StageLayers, ...]:
    """Which layers each stage has."""
    flops = layer_flops(config.model)
    return partition_layers(
        flops.block,
        config.model.num_layers,
        config.swarm.num_stages,
        flops.embedding,
        flops.head,
        layers_per_stage=config.swarm.layers_per_stage,
    )


def stage_flops(config: ExperimentConfig) -> list[int]:
    """Forward FLOPs per token of each stage, without those of boundary layers."""
    flops = layer_flops(config.model)
    costs = [flops.block * layers.num_layers for layers in stage_layers(config)]
    costs[0] += flops.embedding
    costs[-1] += flops.head
    return costs


def stage_work(config: ExperimentConfig) -> list[float]:
    """Of each stage its cost per token, as a multiple of their mean."""
    costs = stage_flops(config)
    return [cost * len(costs) / sum(costs) for cost in costs]
