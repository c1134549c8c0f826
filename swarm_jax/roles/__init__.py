"""The long-running processes, written against Protocols only (net, Compute).

    compute.py        Protocol of what a stage server needs of its device
    messages.py       headers of the protocol, checked when they arrive
    peers.py          cached view of the directory: who serves which stage
    relay.py          sends a microbatch to some peer of the next stage, with retries
    stage_server.py   serves one stage
    trainer.py        feeds and closes steps

They take time from the running event loop only, so that they run unchanged on a
virtual clock.
"""
