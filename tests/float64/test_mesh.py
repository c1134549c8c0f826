"""Peers with several devices, and peers with one, in a swarm: plain training, to 1e-9.

Real roles over the in-process network, in float64 with a float64 wire, on virtual time.
"""

import itertools

import jax

from scripts.meshes import make_mesh
from scripts.wiring import make_compute
from swarm_jax.launcher.mesh_option import ONE_DEVICE, MeshShape
from tests.float64 import plain as plainly
from tests.float64.plain import check_equal, make_config, train


def test_a_mesh_and_one_device_serve_each_stage(plain, monkeypatch):
    shapes = ONE_DEVICE, MeshShape(data=2, model=2)
    kinds, made = itertools.cycle(shapes), []

    def with_mesh(config, stage, **options):
        mesh = make_mesh(next(kinds), jax.devices())
        compute = make_compute(config, stage, mesh=mesh, **options)
        made.append(len(jax.tree.leaves(compute.params)[0].devices()))
        return compute

    monkeypatch.setattr(plainly, "make_compute", with_mesh)
    swarm, totals = train(make_config((2, 3)), [len(shapes), len(shapes)])
    assert made == 2 * [shape.devices for shape in shapes]
    check_equal(swarm, totals, plain)
