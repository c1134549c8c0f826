"""The long-running processes, written against Protocols only (net, Compute).

    compute.py        Protocol of what a stage server needs of its device
    messages.py       headers of the protocol, checked when they arrive
    peers.py          cached view of the directory: who serves which stage
    relay.py          sends a microbatch to some peer of the next stage, with retries
    relaying.py       the receiver's side: forward, deeper stages, backward, count
    stage_control.py  a stage server's part in closing steps
    reducing.py       its part in an all-reduce, and in that of a tied table
    changes.py        changes of device and ledger together, one at a time
    snapshots.py      a stage's state in hashed chunks, for joiners
    download.py       fetches that state from several stage peers
    joining.py        follows the all-reduce meanwhile, and catches up
    leaving.py        finishes, hands the sum over, goes
    stage_server.py   serves one stage: what is let in, and who answers it
    lease.py          who leads
    standby.py        whether who leads is still there
    leadership.py     one trainer's term: its rounds, questions within a round
    watches.py        who of the peers is still there
    leader.py         the loop: collect, decide, act
    feeding.py        keeps microbatches in flight; validation
    preparing.py      the first half of closing a step; void rounds
    journal.py        what a leader records
    trainer.py        feeds and closes steps, or stands by
    supervised.py     a piece of work, and what must go on beside it

They take time from the running event loop only, so that they run unchanged on a
virtual clock.
"""
