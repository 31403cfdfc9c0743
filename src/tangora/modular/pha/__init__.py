"""Prototype-based HyperAdapter (arXiv:2310.11670): bottleneck adapters, generated from the prototype of a task.

    rows ── first half, shared adapters ──▶ mean over tokens ── Retriever ──▶ z ── losses ──▶ prototypes k
    k of the task, embedding of the layer ── Generator ──▶ a bottleneck adapter ──▶ second half

`places` finds the feed-forward layers of a backbone, `parts` has the modules, `networks` puts them in, `losses` has
the two losses between encodings and prototypes, and finds the prototype that is nearest to a new task.
"""
