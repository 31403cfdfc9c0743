"""Bottleneck adapters: their places in a backbone, given by parameters or written by a hypernetwork.

backbone ── find_places ──▶ sub-layers with an entry and an exit
Adapters (a Network) ── weights(place) ──▶ output + scale · A(output or input)
   ├─ Bottlenecks: weights are parameters: adapters of one task, and what every hypernetwork is baked to
   └─ Hypernetwork: weights are functions of embeddings of task and layer (heads, kernels)
"""
