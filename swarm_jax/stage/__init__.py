"""What one stage computes: pure JAX on plain pytrees, and the queue of its device.

codec.py        what travels between stages: activations as raw arrays
optimizer.py    AdamW from plain values, clipping by a norm taken over all stages
programs.py     the jitted programs of one stage
ahead.py        compiles them before anybody waits for them
queue.py        the order in which a device works
compute.py      one stage on one device: programs, state and queue together
inline.py       the device in the event loop's thread: tests, virtual time
threaded.py     the device behind a dispatch thread: live
export.py       parameters in a file, by layer
whole_model.py  the control: plain training of the whole model in one process
"""
