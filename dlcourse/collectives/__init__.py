"""Collectives built from point-to-point messages, and their measurements.

ring, tree, naive, direct: the same all-reduce four times, and the collectives it is made of.
shared: without any message, for ranks on one machine; shared_calls: the other collectives so.
boards, shared_memory: what they share.
one_sided: an all-to-all in which each rank puts its data into the others' memory. low_latency: the
same without counts first, ready by flag or by payload; low_latency_exchange: that under a layer of
experts; symmetric: that between GPUs.
mailboxes, places, window: the memory of these two, what they refuse, and how a rank waits.
p2p: posting messages and waiting for them. buffers: the memory they come from and go to.
benchmark, tcp_counters: time, and bytes that really left this rank.
compat: names that torch has changed.
"""
