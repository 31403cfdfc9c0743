"""A decoder small enough to train in a minute on one core, on the texts of `tangora.quickstart.questions` alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tangora.quickstart import questions
from tangora.quickstart.model import tokenizer, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from tangora.quickstart.training import Progress

__all__ = ["DecoderSettings", "build", "corpus", "pretrain", "save", "words_of"]

MAX_TOKENS = 48
_CLUE = "there is {}"


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder's architecture and training; with the texts, they decide its weights."""

    width: int = 64
    layers: int = 6
    heads: int = 4
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 20
    seed: int = 0


def corpus() -> list[str]:
    """Return the texts: every question with each answer, alone, and twice behind a clue that gives the answer away.

    A decoder that has read clues reads them in its context, as a large one does; the clue may be a visual token later.
    """
    rows = [(f"{question} {answer}".strip(), answer) for question, answer in questions.texts()]
    clued = [f"{_CLUE.format(answer)}. {text}" for text, answer in rows]
    return [*(text for text, _ in rows), *clued, *clued]


def words_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word and each mark of texts."""
    spaced = [text.replace("?", " ?").replace(".", " .") for text in texts]
    return tokenizer(vocabulary(spaced), longest=MAX_TOKENS)


def build(words: PreTrainedTokenizerFast, settings: DecoderSettings) -> LlamaForCausalLM:
    """Build the untrained model with torch's global generator; the caller seeds and forks it."""
    from transformers import LlamaConfig, LlamaForCausalLM  # deferred: it takes seconds to import

    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    settings: DecoderSettings, progress: Progress | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train the decoder on `corpus`; on one machine, the same settings give the same weights.

    Args:
        settings: model and schedule.
        progress: called after each step with (steps done, steps, loss).
    """
    texts = corpus()
    words = words_of(texts)
    ids = words(texts, padding=True, return_tensors="pt")["input_ids"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(words, settings)
    _fit(model, ids, settings, progress or (lambda *_: None))
    return model.eval(), words


def save(model: LlamaForCausalLM, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer as ``from_pretrained`` expects them."""
    from transformers.utils import logging  # deferred: it takes seconds to import

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for one small file, it would only disturb ours
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    words.save_pretrained(folder)


def _fit(model: Any, ids: Int[Tensor, "n words"], settings: DecoderSettings, progress: Progress) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    model.train()
    for step in range(settings.steps):
        rows = ids[torch.randint(len(ids), (settings.batch_size,), generator=generator)]
        seen = rows != 0
        loss = model(input_ids=rows, attention_mask=seen.long(), labels=rows.masked_fill(~seen, -100)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, settings.steps, loss.item())


def _rate(step: int, settings: DecoderSettings) -> float:
    """Return the learning rate as a fraction of the peak: linear warm-up, then half a cosine to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
