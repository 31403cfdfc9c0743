"""Full checkpoints in and out, out of core: the fusion of models that need not fit into memory.

    folders -> reader, header     names, shapes, dtypes, places; from the headers alone, all of it checked
            -> align, onto        which tensors meet: `Target`s; fine-tuned models, or adapters onto a base
            -> plan               shards, every byte's place, peak memory; all known before a tensor is read
            -> steps, scheduler   jobs: sample, count, fuse; threads take the one of the smallest number
            -> lane               a thread's buffers: read a block, subtract the base, round, all in place
            -> select             exact cutoffs for methods like TIES, in one pass
            -> fuser              the method on a block
            -> output, sidecars   blocks to their places; finished shards survive a kill; OUT appears whole

A block is read, fused and written by one thread; threads meet only where jobs are handed out. The bits of the result
depend neither on the number of threads nor on the size of the blocks.
"""

from __future__ import annotations

from tangora.checkpoints.merge import Merged, fuse_checkpoints

__all__ = ["Merged", "fuse_checkpoints"]
