"""Fuse full checkpoints out of core: the models need not fit into memory.

    folders -> storage            names, shapes, dtypes, offsets; from the headers alone, all of them checked
            -> align, onto_base   pairs tensors into `Target`s; fine-tuned models, or adapters onto a base
            -> plan               shards, every byte's offset, peak memory; all known before a tensor is read
            -> steps, scheduler   steps: sample, count, fuse; a thread takes the one with the smallest number
            -> lane               a thread's buffers: read a block, subtract the base, round, all in place
            -> select             exact cutoffs for methods like TIES, in one pass
            -> fuser              the method on a block
            -> output, sidecars   blocks to their offsets; finished shards survive a kill; OUT appears complete

One thread reads, fuses and writes a block; threads share only the queue of steps. The bits of the result depend neither
on the number of threads nor on the size of the blocks.
"""

from __future__ import annotations

from tangora.checkpoints.merge import Merged, fuse_checkpoints

__all__ = ["Merged", "fuse_checkpoints"]
