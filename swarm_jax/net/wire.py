"""Calls between two peers over one long-lived byte stream, many at once.

A new stream (so every call of hivemind's own RPC) starts with a small flow-control
window and costs round trips; one kept open does not. ``Caller`` and ``Callee`` are its
two ends, and know nothing of hivemind: asyncio's reader and writer are enough.

* A callee decides on a call when its head has come, before its body. A caller that gets
  its answer (a refusal) meanwhile stops sending; what was on its way is dropped.
* While a callee has calls open it sends heartbeats, at the period that the caller asks
  for: peers may differ in it. Any byte counts as a sign of life of the whole stream.
* Frames are written one at a time, and none holds up heartbeats. Messages of more than
  one frame of body are sent one after the other, each way: what was sent first is there
  first, and the work on it begins. Small ones go between their frames.
* A callee never stops reading, or it would miss the CANCEL that frees it.

What bounds a hostile end (``hivemind_calls`` bounds streams and bans peers):

* open calls of a stream: ``MAX_CALLS``; a caller waits for a free one, so more are a
  violation. Handlers, cancelled ones that have not ended yet among them: ``MAX_TASKS``.
* one message: ``max_message_bytes``; a larger one is refused at its head.
* all messages together: ``budget``, heads at ``HEAD_WEIGHT`` times their bytes, since
  msgpack of one byte can make an object of 86. Who finds no room gets ``busy``.
* time: ``stall_s``. Who owes us the rest of a frame or body, a first call, or the
  reading of an answer, and moves less than ``MIN_PROGRESS_BYTES`` in that time, is
  dropped. Nothing bounds the total time: a slow line is slow.
* processor: a stream is read 16 KiB (inside a body 256 KiB) in one turn of the loop.
"""

MAX_CALLS = 256
MAX_TASKS = 4 * MAX_CALLS
HEAD_WEIGHT = 96
SILENT_HEARTBEATS = 3
MIN_HEARTBEAT_S = 0.01
