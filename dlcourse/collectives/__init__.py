"""Collectives built from point-to-point messages, and their measurements.

ring, tree, naive, direct: the same all-reduce four times, and the collectives it is made of.
shared: without any message, for ranks on one machine.
p2p: posting messages and waiting for them. buffers: the memory they come from and go to.
benchmark, tcp_counters: time, and bytes that really left this rank.
compat: names that torch has changed.
"""
