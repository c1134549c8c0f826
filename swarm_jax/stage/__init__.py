"""What one stage computes: pure JAX on plain pytrees, and the queue of its device.

codec.py            what travels between stages, as raw arrays, by the wire's name
codec_int8.py       blockwise linear 8-bit codes
codec_dynamic8.py   the dynamic 8-bit map
codec_blocks.py     what these two share
optimizer.py        AdamW from plain values, clipping by a norm taken over all stages
blocks.py           a stage's blocks, stacked or one by one
passes.py           forward and backward of one stage
programs.py         the jitted programs of one stage
layout.py           where its arrays are on several devices
ahead.py            compiles them before anybody waits for them
residuals.py        which microbatches' residuals stay on the device
memory.py           how many of them fit
home.py             whether parameters and optimizer state are on the device
queue.py            the order in which a device works
results.py          what a device gives back
compute.py          one stage on one device: programs, state and queue together
inline.py           the device in the event loop's thread: tests, virtual time
threaded.py         the device behind a dispatch thread: live
layered.py          a stage's state by layer, whatever the partition
layer_files.py      one layer's arrays as an Orbax checkpoint, hashed
manifests.py        what is written beside the arrays: a stage's manifest, the marker
step_folder.py      what is on the disk of one step
checkpoints.py      swarm checkpoints in a folder: save, complete, restore, prune
saved_stage.py      the same for a server, off its event loop
export.py           parameters in a file, by layer
whole_model.py      the control: plain training of the whole model in one process
"""
