"""A decoder small enough to train in a minute on one core, on the texts of `tangora.quickstart.questions` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tangora.quickstart import questions
from tangora.quickstart.fitting import fit, save_model
from tangora.quickstart.model import tokenizer, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from tangora.quickstart.fitting import Progress

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
    save_model(model, folder)
    words.save_pretrained(folder)


def _fit(model: Any, ids: Int[Tensor, "n words"], settings: DecoderSettings, progress: Progress) -> None:
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of() -> Tensor:
        rows = ids[torch.randint(len(ids), (settings.batch_size,), generator=generator)]
        seen = rows != 0
        loss: Tensor = model(input_ids=rows, attention_mask=seen.long(), labels=rows.masked_fill(~seen, -100)).loss
        return loss

    fit(model, settings, loss_of, progress)
