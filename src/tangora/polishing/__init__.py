"""Polish: a fused adapter is trained towards its experts' answers, on rows without labels, at a fixed rank.

    experts ── answers on rows, one expert at a time ──▶ lessons (kept by content)
    start: the experts fused, or any adapter ── truncated to a rank, balanced ──▶ LoRA layers in the base
    lessons, LoRA layers ── training, a step of every task ──▶ the polished adapter

A line belongs to `rows` and `recombination` if it is about inputs, to `teaching` and `lessons` if about experts, to
`student` if about what is trained, to `objectives` if about the distance between the two, to `following` if about the
order of rows and the loss of a batch. `training` joins them, and `polish` is what a caller sees.
"""
