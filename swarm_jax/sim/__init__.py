"""Virtual time: the same core and roles as live, in milliseconds.

clock.py     event loop whose clock jumps to the next timer
swarm.py     stage servers and a trainer in one process
data.py      random tokens by microbatch id
modelled.py  a device without JAX whose arithmetic is exact
slept.py     a device that takes its time and hands on arrays of real size
faults.py    faults and schedules as data
sabotage.py  strikes where a schedule says
damage.py    what faults do to links and messages
chaos.py     runs a schedule and lets the oracle look
oracle.py    what must be true at the end of every run
schedules.py random schedules

And without microbatches, for days of hundreds of peers:

market.py      traces of a spot market
fluid.py       a swarm whose throughput is that of its slowest stage
strategies.py  who moves, and where newcomers go
replay.py      a trace under a strategy
rebalancing.py the paper's ablation: cases, table, picture
"""
