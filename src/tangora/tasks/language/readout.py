"""The readout of a decoder: logits of target tokens, and answers by generation or by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tangora.tasks.batches import IGNORED
from tangora.tasks.language.encoding import answer_tokens, most_generated
from tangora.tasks.language.greedy import Generation
from tangora.tasks.language.logits import Layers, layers_of, seen, target_logits, target_losses
from tangora.tasks.language.tokens import vocabulary
from tangora.tasks.readouts import token_losses

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.config.language import LanguageTask
    from tangora.tasks.base import Base
    from tangora.tasks.values import Batch

__all__ = ["LanguageReadout", "trimmed"]


class LanguageReadout(nn.Module):
    """Logits of target tokens (teacher-forced) by the decoder's own output layer.

    The loss of a row is the mean cross-entropy of its target tokens. An answer is

    - a text, generated greedily up to an end token, a stop text, or the largest number of tokens;
    - of a task with choices, the choice with the largest log-likelihood, normalized as the task says;
    - of plain texts, their total negative log-likelihood in nats and the number of tokens.

    Args:
        base: the model, for its vocabulary and tokenizer.
        config: the settings of the task.
    """

    def __init__(self, base: Base, config: LanguageTask) -> None:
        super().__init__()
        backbone: Any = base.backbone
        self.width = int(backbone.config.get_text_config().vocab_size)
        # Rows of several tasks share a batch if they have the same inputs.
        self.features_key: Hashable = ("causal-lm", config.form == "choices", config.loss, config.turns)
        self._config, self._words, self._most = config, vocabulary(base, config), most_generated(config, base)
        self._layers: Layers | Literal["unknown"] | None = "unknown"
        self.unended = 0

    def features(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the model's logits of the target tokens, which are the last columns of the batch."""
        assert labels is not None, "a decoder has logits of target tokens only"
        return target_logits(backbone, inputs, labels)

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the logits in float32."""
        return features.float()

    def losses(
        self, logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"], /
    ) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy over each row's target tokens."""
        return token_losses(logits, labels)

    def losses_only(self, backbone: nn.Module, inputs: Batch, labels: Tensor, /) -> Float[Tensor, " batch"]:
        """Return the losses without the logits of the whole batch, if the model allows it."""
        if self._layers == "unknown":
            self._layers = layers_of(backbone)
        if self._layers is None:
            return self.losses(self.logits(self.features(backbone, inputs, labels)), labels)
        return target_losses(self._layers, inputs, labels)

    def labels_of(self, texts: Sequence[str], /) -> list[Tensor]:
        """Return the tokens of generated answers, with their end: at most as many as are generated."""
        history = [{"role": "user", "content": "-"}] if self._config.chatting else None
        answers = (answer_tokens(history, text, self._config, self._words) for text in texts)
        return [torch.tensor(ids[: self._most]) for ids in answers]

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return an answer and a loss per row."""
        if settle is None:
            losses = self.losses_only(backbone, inputs, labels)
        else:
            losses = self.losses(settle(self.features(backbone, inputs, labels)).float(), labels)
        if self._config.form == "text":
            counts = (labels != IGNORED).sum(1)
            return [[t, n] for t, n in zip((losses * counts).tolist(), counts.tolist(), strict=True)], losses
        if "choices" in inputs:
            return self._chosen(backbone, inputs, settle or _unchanged), losses
        return self._generated(backbone, inputs, settle), losses

    def _generated(self, backbone: nn.Module, inputs: Batch, settle: Callable[[Tensor], Tensor] | None) -> list[str]:
        start = int(inputs["boundary"][0])
        generation = Generation(backbone, self._most, self._words.ends, self._stopped, settle, seen(inputs))
        answers = generation.answers(inputs["input_ids"][:, :start], inputs["attention_mask"][:, :start])
        self.unended += sum(len(ids) == self._most and not self._stopped(ids) for ids in answers)
        return [trimmed(self._text(ids), self._config.stop) for ids in answers]

    def _stopped(self, ids: list[int]) -> bool:
        if not self._config.stop:
            return False
        text = self._text(ids).lstrip()
        return any(stop in text for stop in self._config.stop)

    def _text(self, ids: list[int]) -> str:
        decoded: str = self._words.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded

    def _chosen(self, backbone: nn.Module, inputs: Batch, settled: Callable[[Tensor], Tensor]) -> list[str]:
        """Return the likeliest choice of each row; all choices of a rank are scored in one batch."""
        start = int(inputs["boundary"][0])
        offered = [_unpacked(row.tolist()) for row in inputs["choices"]]
        scores = [[-torch.inf] * len(row) for row in offered]
        for rank in range(max(map(len, offered))):
            rows = [row for row, choices in enumerate(offered) if rank < len(choices)]
            targets = [torch.tensor(offered[row][rank][0]) for row in rows]
            likelihoods = _likelihoods(backbone, inputs, start, rows, targets, settled)
            for row, likelihood in zip(rows, likelihoods, strict=True):
                scores[row][rank] = likelihood / offered[row][rank][1]
        best = [max(range(len(row)), key=row.__getitem__) for row in scores]
        picked = (offered[row][rank][0] for row, rank in enumerate(best))
        return [trimmed(self._text(ids), self._config.stop) for ids in picked]


def trimmed(text: str, stops: Sequence[str]) -> str:
    """Return a generated text up to the first stop text that follows something else than white space.

    >>> trimmed(" 7 + 5\\nProblem: ", ["\\n"])
    '7 + 5'
    """
    text = text.strip() if not stops else text.lstrip()
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)].strip() if places else text.strip()


def _unchanged(value: Tensor) -> Tensor:
    return value


def _unpacked(packed: Sequence[int]) -> list[tuple[list[int], int]]:
    """Return tokens and divisor of each choice, from a row of ``choices``."""
    choices: list[tuple[list[int], int]] = []
    ids: list[int] = []
    last = max(place for place, value in enumerate(packed) if value < 0)
    for value in packed[: last + 1]:
        if value < 0:
            choices.append((ids, -value))
            ids = []
        else:
            ids.append(value)
    return choices


def _likelihoods(
    backbone: nn.Module,
    inputs: Batch,
    start: int,
    rows: Sequence[int],
    targets: Sequence[Tensor],
    settled: Callable[[Tensor], Tensor],
) -> list[float]:
    """Return the log-likelihood of a continuation of each of these rows' prompts, in nats."""
    device = inputs["input_ids"].device
    after = nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=IGNORED).to(device)
    ids = torch.cat([inputs["input_ids"][rows, :start], after.clamp_min(0)], 1)
    mask = torch.cat([inputs["attention_mask"][rows, :start], (after != IGNORED).long()], 1)
    beside = {name: value[rows] for name, value in seen(inputs).items()}
    logits = settled(target_logits(backbone, {"input_ids": ids, "attention_mask": mask, **beside}, after)).float()
    totals: list[float] = (-token_losses(logits, after) * (after != IGNORED).sum(1)).tolist()
    return totals
