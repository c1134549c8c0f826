"""Schedules that found something, shrunk; each with what it found."""

import json

import pytest

from swarm_jax.sim.chaos import run_schedule
from swarm_jax.sim.faults import Schedule

FOUND = {
    "a trainer that led again recorded a step that another one had closed": """
        {"peers_per_stage": [1, 3, 1, 1], "trainers": 2, "faults": [
        {"kind": "lag", "peer": "stage2-0", "at_s": 0.93, "for_s": 15.0},
        {"kind": "corrupt", "peer": "stage0-0", "when": "approaching prepare"},
        {"kind": "silence", "peer": "stage3-0", "when": "answered prepare", "nth": 2,
        "for_s": 0.05}]}
        """,
    "a newcomer at step 0 went on alone while the only peer stood still": """
        {"peers_per_stage": [1], "trainers": 2, "faults": [
        {"kind": "join", "peer": "stage0-0", "when": "approaching prepare", "nth": 3},
        {"kind": "hang", "peer": "stage0-0", "when": "approaching prepare", "nth": 3,
        "for_s": 15.0}]}
        """,
    "who led after the end did not know how far the run had been": """
        {"peers_per_stage": [3], "trainers": 1, "faults": [
        {"kind": "no_directory", "peer": "stage0-2", "when": "request_arrived commit",
        "for_s": 15.0},
        {"kind": "join", "peer": "stage0-0", "when": "approaching collect", "nth": 5},
        {"kind": "crash", "peer": "stage0-0", "when": "answered prepare", "nth": 5},
        {"kind": "lag", "peer": "stage0-2", "at_s": 1.3, "for_s": 15.0},
        {"kind": "crash", "peer": "stage0-1", "when": "approaching prepare",
        "nth": 2}]}
        """,
    "the peer with the last state left before another one had it": """
        {"peers_per_stage": [3], "trainers": 1, "faults": [
        {"kind": "drain", "peer": "stage0-0", "when": "approaching collect"},
        {"kind": "partition", "peer": "stage0-1", "when": "answered commit", "nth": 3,
        "for_s": 15.0},
        {"kind": "drain", "peer": "stage0-2", "at_s": 1.12}]}
        """,
    "two joiners took each other for donors when the only donor died": """
        {"peers_per_stage": [2, 1, 2], "trainers": 1, "faults": [
        {"kind": "join", "peer": "stage1-1", "when": "answered commit",
        "where": "stage1-0"},
        {"kind": "crash_alone", "peer": "stage1-0", "when": "request_arrived chunk",
        "for_s": 3.0}]}
        """,
}


@pytest.mark.parametrize("what", FOUND)
def test_it_does_not_happen_any_more(what):
    run_schedule(Schedule.from_dict(json.loads(FOUND[what])))
