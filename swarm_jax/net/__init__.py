"""The seam to the network: roles know the Protocols, scripts choose the adapter.

    protocols.py          Message, PeerCalls, Directory, AllReduce
    local.py              in-process adapter, works on a virtual clock
    frames.py             what is on the wire, and every check of it
    decoder.py            a byte stream cut into frames, without I/O
    link.py, wire.py      many calls over one byte stream, with heartbeats
    hivemind_node.py      p2p daemon and DHT node of this process
    hivemind_calls.py     PeerCalls over long-lived libp2p streams
    hivemind_directory.py Directory over the DHT
    hivemind_allreduce.py AllReduce over hivemind's butterfly, group given
    hivemind_butterfly.py one round of it, made exact

Only ``hivemind_*`` import hivemind or torch.
"""
