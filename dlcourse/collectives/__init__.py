"""Collectives built from point-to-point messages, their cost model and their measurements.

ring, tree, naive, direct: the same all-reduce four times, and the collectives it is made of.
shared: without any message, for ranks on one machine.
p2p: posting and waiting for messages. cost: alpha-beta, bus bandwidth, bytes by theory.
benchmark, wire: time, and bytes that really left this rank.
"""
