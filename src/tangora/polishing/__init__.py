"""Polish: a fused adapter is trained towards its experts' answers, on rows without labels, at a fixed rank.

    experts ── answers on rows, one expert at a time ──▶ lessons (kept by content)
    start: the experts fused, or any adapter ── truncated to a rank, balanced ──▶ LoRA layers in the base
    lessons, LoRA layers ── training, a step of every task ──▶ the polished adapter

Two parts work block by block instead of on answers. Both carry two inputs of the present block for each batch of a
task: z_t in the expert's own pass, and z_m in the merged model, whose earlier blocks are done.

    expert t's block ── z_t ──▶ what it computes        one expert in memory at a time, one block of it
    merged block ── z_m ──▶ what it should compute      then both move on to the next block
        closed_form    initial: layers     each layer's outputs, by ridge regression; cut to the rank for its inputs
        progressive    objective: layers   the block's output, by steps on A and B, or on a coefficient for every entry

A line belongs to `rows` and `recombination` if it is about inputs, to `teaching` and `lessons` if about experts, to
`student` if about what is trained, to `objectives` if about the distance between the two, to `following` if about the
order of rows and the loss of a batch; to `blocks` if about where blocks are and how one is called alone, to `dual` if
about the two inputs, to `block_students` if about what is trained in a block. `training` joins them, and `polish` is
what a caller sees.
"""
