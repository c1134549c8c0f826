"""Pure logic: plain Python, no I/O. Time, randomness and the view are arguments.

    ids.py          microbatch ids, rounds of a leader
    ledger.py       which microbatches are in a gradient sum
    reports.py      what peers say of themselves to the leader
    newest.py       how far the run has been
    closing.py      the step protocol: what the leader does next
    stage_state.py  a stage server's place in that protocol
    router.py       which peer of the next stage gets a microbatch
    window.py       how many microbatches are kept in flight
    bans.py         who is not listened to for a while
    traffic.py      bytes that crossed the boundaries between stages
    throughput.py   moving average of measured tokens per second
    partition.py    which layers make up which stage
    capacity.py     what the peers of each stage can do together
    placement.py    which stage a new peer serves
    rebalancing.py  which peers change their stage
    replanning.py   layers and peers of each stage, for the fleet at hand

The live swarm and the simulator run the same objects.
"""
