"""Decoder language models: the family `causal-lm`.

    columns of a row ── rows ──> prompt (or turns of a chat) and completion, as texts
    texts ── encoding ──> tokens of the prompt, tokens of the completion                 (once per run)
    tokens ── collation ──> one batch: prompts end, and completions begin, in the same column
    batch ── readout ──> logits of the completions' tokens ──> losses
                   └──> answers: by ── greedy ──> texts, by the likelihood of choices, or likelihoods of texts

A batch has no logits of prompts: the rows are aligned at the first target token, so that the targets are the last
columns of the batch, and the model computes the logits of these columns only::

    attention_mask     0 0 1 1 1 | 1 1 1 0            p: token of a prompt    c: of a completion    ·: padding
    input_ids          · · p p p | c c c ·
                       p p p p p | c c · ·            the last token of a row is a target, and never an input
    labels                         c c c ·
"""
