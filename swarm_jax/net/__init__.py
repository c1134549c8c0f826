"""The seam to the network: roles know the Protocols, scripts choose the adapter.

    protocols.py          Message, PeerCalls, Directory, AllReduce
    local.py              in-process adapter, works on a virtual clock
    frames.py             what is on the wire, and every check of it
    decoder.py            a byte stream cut into frames, without I/O
    wire.py               rules of many calls over one byte stream, and its limits
    caller.py, callee.py  the two ends of such a stream
    link.py               what both have: turns of writing, bytes to frames
    budget.py             bytes that peers may make this process hold
    progress.py           who owes something and does not move
    same_host.py          byte streams between processes of one user on one host
    parts.py              how parts of an all-reduce travel: exact, or rounded
    hivemind_node.py      p2p daemon and DHT node of this process
    hivemind_daemon.py    single requests to that daemon
    hivemind_contacts.py  peers that were met, and how they are found again
    hivemind_searches.py  DHT node whose searches are never cut short
    hivemind_folder.py    where that daemon's sockets are; nothing of it is left
    hivemind_identity.py  whether a running peer has it already
    hivemind_calls.py     PeerCalls over long-lived streams
    hivemind_same_host.py peers on one host meet past their daemons
    hivemind_directory.py Directory over the DHT
    hivemind_records.py   what is taken from the DHT, and kept for others
    hivemind_allreduce.py AllReduce over hivemind's butterfly, group given
    hivemind_butterfly.py one round of it, made exact

Only ``hivemind_*`` import hivemind or torch.
"""
