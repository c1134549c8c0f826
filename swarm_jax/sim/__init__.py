"""Virtual time: the same core and roles as live, in milliseconds.

clock.py     event loop whose clock jumps to the next timer
swarm.py     stage servers and a trainer in one process
data.py      random tokens by microbatch id
modelled.py  a device without JAX whose arithmetic is exact
chaos.py     random schedules of faults, and the oracle for all of them
"""
