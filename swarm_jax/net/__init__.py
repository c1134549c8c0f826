"""The seam to the network: roles know the Protocols, scripts choose the adapter.

    protocols.py          Message, PeerCalls, Directory, AllReduce
    wire.py               frames on a byte stream: lengths, schema, heartbeats
    local.py              in-process adapter, works on a virtual clock
    hivemind_node.py      p2p daemon and DHT node of this process
    hivemind_calls.py     PeerCalls over long-lived libp2p streams
    hivemind_directory.py Directory over the DHT
    hivemind_allreduce.py AllReduce over hivemind's butterfly, group given

Only ``hivemind_*`` import hivemind or torch.
"""
