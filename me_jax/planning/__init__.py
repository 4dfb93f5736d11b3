"""Plans: what a run would need on machines that are not here.

`topology` turns the name of a pod or a cluster into devices to compile for,
with the published figures of their `chips`. `hlo` reads what the compiler made
of a program: which collectives, how much arithmetic, which buffers. `roofline`
says how long that takes at best.
"""
