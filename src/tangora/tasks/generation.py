"""Generate text with a sequence-to-sequence model such as T5."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import DataError
from tangora.tasks.base import Base, pretrained, processor, refuse_other_tokens
from tangora.tasks.readouts import token_losses
from tangora.tasks.templates import prompts
from tangora.tasks.texts import tokenize, tokenize_rows
from tangora.tasks.values import Encoded

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.config.tasks import BaseConfig, TaskConfig
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["GenerationReadout", "encode", "load"]


def load(config: BaseConfig) -> Base:
    """Load the model and its tokenizer."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # deferred: it takes a second to import

    backbone, tokenizer = pretrained(AutoModelForSeq2SeqLM, config), processor(AutoTokenizer, config)
    refuse_other_tokens(tokenizer, backbone, config.model)
    return Base(config, backbone, tokenizer)


def encode(table: Table, targets: Sequence[str], config: TaskConfig, base: Base, most: int) -> Encoded:
    """Return token ids of the prompts, and as labels those of the target texts.

    Raises:
        DataError: a target text has more than ``most`` tokens, so that no answer could match it.
    """
    settings: Any = base.config
    inputs = tokenize_rows(base.processor, prompts(table, config), settings.max_length, table.place)
    labels = tokenize(base.processor, targets, most + 1, table.place)
    for row, tokens in enumerate(labels):
        if len(tokens) > most:
            raise DataError(
                f"a target has more than {most} tokens",
                got=targets[row],
                where=table.place(row),
                fix="raise base.max_new_tokens",
            )
    return Encoded({**inputs, "labels": labels}, inputs.cut, inputs.longest)


class GenerationReadout(nn.Module):
    """A readout with the logits of target tokens (teacher-forced), and answers by greedy generation.

    The loss of a row is the mean cross-entropy over its target tokens.

    Args:
        base: the model, for its vocabulary and tokenizer.
        most: the maximum number of generated tokens.
    """

    def __init__(self, base: Base, most: int) -> None:
        super().__init__()
        backbone: Any = base.backbone
        self.width = int(backbone.config.vocab_size)
        self.features_key: Hashable = "logits"
        self._most = most
        self._tokenizer = base.processor
        self.unended = 0

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Return the model's logits of the target tokens."""
        logits: Tensor = backbone(**inputs, labels=labels).logits
        return logits

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the logits in float32."""
        return features.float()

    def losses(
        self, logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"], /
    ) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy over each row's target tokens."""
        return token_losses(logits, labels)

    def labels_of(self, texts: Sequence[str], /) -> list[Tensor]:
        """Return token ids of generated texts, with the end token: at most as many as are generated."""
        return tokenize(self._tokenizer, texts, self._most, "answer {}".format)

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[str], Float[Tensor, " batch"]]:
        """Return a text and a loss per row, from one pass of the encoder."""
        model: Any = backbone
        mask = inputs["attention_mask"]
        encoded = model.get_encoder()(**inputs)

        def step(**decoder: Tensor) -> Tensor:
            logits: Tensor = model(encoder_outputs=encoded, attention_mask=mask, **decoder).logits
            return logits.float() if settle is None else settle(logits).float()

        losses = self.losses(step(labels=labels), labels)
        if settle is not None:  # generate() would compare only the primals of dual numbers
            ids = _greedy(step, model, len(mask), self._most)
        else:
            settings: dict[str, Any] = {"max_new_tokens": self._most, "do_sample": False, "num_beams": 1}
            ids = model.generate(encoder_outputs=encoded, attention_mask=mask, **settings)
        self.unended += int((~torch.isin(ids[:, 1:], _ends(model).to(ids.device)).any(1)).sum())
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True), losses


def _ends(model: Any) -> Tensor:
    """Return the tokens that end an answer; there may be none."""
    end = model.generation_config.eos_token_id
    if end is None:
        return torch.empty(0, dtype=torch.int64)
    return torch.tensor(end if isinstance(end, list) else [end])


def _greedy(step: Callable[..., Tensor], model: Any, rows: int, most: int) -> Tensor:
    """Generate token ids ``[rows, tokens]`` greedily; a row that has ended is padded."""
    settings = model.generation_config
    ends, padding = _ends(model), settings.pad_token_id
    first = getattr(settings, "decoder_start_token_id", None)
    first = model.config.decoder_start_token_id if first is None else first
    ids = torch.full((rows, 1), first, device=next(model.parameters()).device)
    going = torch.ones(rows, dtype=torch.bool, device=ids.device)
    for _ in range(most):
        chosen = step(decoder_input_ids=ids)[:, -1].argmax(-1)
        ids = torch.cat([ids, torch.where(going, chosen, padding or 0)[:, None]], 1)
        going &= ~torch.isin(chosen, ends.to(ids.device))
        if not bool(going.any()):
            break
    return ids
