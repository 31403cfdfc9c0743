"""Encode rows as tokens: prompts as ``input_ids``, completions as ``labels``.

Further inputs of a split, one entry per row:

- ``earlier``: the tokens of the prompt that are learned too, the others ignored;
- ``choices``: the tokens of all choices, each followed by minus the number that its log-likelihood is divided by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.errors import DataError
from tangora.tasks.batches import IGNORED
from tangora.tasks.language.rows import choices_of, conversations, plain_texts, prompts_of
from tangora.tasks.language.tokens import Vocabulary, vocabulary
from tangora.tasks.values import Encoded

if TYPE_CHECKING:
    from tangora.config.language import LanguageTask
    from tangora.tasks.base import Base
    from tangora.tasks.sources import Table

__all__ = ["answer_tokens", "encode", "most_generated"]

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class _Row:
    """The tokens of a row.

    Attributes:
        prompt: what a model reads before it answers.
        target: the answer with its end.
        learned: for each token of the prompt, whether it is learned too.
        choices: see the module.
        longest: number of tokens of the longest answer that is scored.
    """

    prompt: list[int]
    target: list[int]
    learned: list[bool]
    choices: list[int]
    longest: int


def encode(table: Table, targets: Sequence[Any], config: LanguageTask, base: Base) -> Encoded:
    """Return tokens of prompts, completions and choices.

    Raises:
        DataError: a row has more tokens than the base reads, and may not be truncated; or an answer has more tokens
            than are generated, so that no answer could match it.
    """
    words = vocabulary(base, config)
    rows = _rows(table, targets, config, words)
    if config.form in ("prompt", "messages"):
        _refuse_long_answers(rows, most_generated(config, base), table)
    longer = sum(len(row.prompt) + row.longest > words.most for row in rows)
    fitted = [_fitted(row, config, words, table.place(number), longer) for number, row in enumerate(rows)]
    whole, rows = rows, fitted
    inputs: dict[str, list[Tensor] | Tensor] = {
        "input_ids": [torch.tensor(row.prompt) for row in rows],
        "labels": [torch.tensor(row.target) for row in rows],
    }
    if config.loss == "all" or config.turns == "all":
        inputs["earlier"] = [_learned(row) for row in rows]
    if config.form == "choices":
        inputs["choices"] = [torch.tensor(row.choices) for row in rows]
    cut = (number for number, (before, after) in enumerate(zip(whole, rows, strict=True)) if after is not before)
    return Encoded(inputs, cut, words.most)


def answer_tokens(history: Messages | None, text: str, config: LanguageTask, words: Vocabulary) -> list[int]:
    """Return the tokens of an answer in the form in which a model generates it, with its end.

    Args:
        history: the chat before it; None without a chat.
        text: the answer.
        config: of the task.
        words: the tokenizer.
    """
    if history is None:
        return words.ended(words.more(config.separator + text))
    return words.ended(words.more(words.turn(history, text)))


def most_generated(config: LanguageTask, base: Base) -> int:
    """Return the largest number of tokens that are generated for an answer to the task."""
    settings: Any = base.config
    return config.max_new_tokens or int(settings.max_new_tokens)


def _rows(table: Table, targets: Sequence[Any], config: LanguageTask, words: Vocabulary) -> list[_Row]:
    if config.form == "text":
        return [_plain(text, words) for text in plain_texts(table, config)]
    answers = [target[0] if isinstance(target, tuple) else target for target in targets]
    if config.form == "messages":
        chats = [one.history for one in conversations(table, config)]
        return [
            _chat(chat, answer, config, replace(words, where=table.place(row, config.messages)))
            for row, (chat, answer) in enumerate(zip(chats, answers, strict=True))
        ]
    prompts = prompts_of(table, config)
    offered = choices_of(table, config) if config.form == "choices" else [[]] * len(prompts)
    return [
        _prompted(*parts, config, replace(words, where=table.place(row)))
        for row, parts in enumerate(zip(prompts, answers, offered, strict=True))
    ]


def _plain(text: str, words: Vocabulary) -> _Row:
    ids = [*words.start(text), words.ends[0]]
    return _Row(ids[:1], ids[1:], [False], [], len(ids) - 1)


def _prompted(prompt: str, answer: str, offered: Sequence[str], config: LanguageTask, words: Vocabulary) -> _Row:
    history: Messages | None = None
    if config.chatting:
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        history = [*system, {"role": "user", "content": prompt}]
    ids = words.start(prompt) if history is None else words.more(words.chat(history, answered=False))
    target = answer_tokens(history, answer, config, words)
    choices = [answer_tokens(history, choice, config, words)[:-1] for choice in offered]  # without the end
    divisors = [_divisor(choice, ids, config) for choice, ids in zip(offered, choices, strict=True)]
    listed = [i for ids, divisor in zip(choices, divisors, strict=True) for i in (*ids, -divisor)]
    return _Row(ids, target, [config.loss == "all"] * len(ids), listed, max(map(len, [target, *choices])))


def _divisor(choice: str, ids: Sequence[int], config: LanguageTask) -> int:
    return {"tokens": len(ids), "characters": len(choice), "none": 1}[config.normalize]


def _chat(history: Messages, answer: str, config: LanguageTask, words: Vocabulary) -> _Row:
    target = answer_tokens(history, answer, config, words)
    if config.turns == "last":
        ids = words.more(words.chat(history, answered=False))
        return _Row(ids, target, [config.loss == "all"] * len(ids), [], len(target))
    pieces = list(_pieces(history, words))
    parts = [(words.more(text), learned) for text, learned in pieces]
    ids, learned = [], []
    for tokens, of_assistant in parts:
        told = len(words.ended(tokens)) if of_assistant else 0  # what follows the end is never generated
        ids += tokens
        learned += [place < told or config.loss == "all" for place in range(len(tokens))]
    return _Row(ids, target, learned, [], len(target))


def _pieces(history: Messages, words: Vocabulary) -> list[tuple[str, bool]]:
    """Return the text of a chat in pieces, each with whether the assistant generates it.

    Raises:
        DataError: the template changes earlier turns if later ones follow.
    """
    pieces: list[tuple[str, bool]] = []
    done = ""
    ends = [place for place, message in enumerate(history) if message["role"] == "assistant"]
    for place in [*ends, len(history)]:
        text = words.chat(history[:place], answered=False)
        if not text.startswith(done):
            fix = "set turns: last"
            raise DataError("the chat template changes the earlier turns of a conversation", where=words.where, fix=fix)
        pieces.append((text[len(done) :], False))
        done = text
        if place < len(history):
            turn = words.turn(history[:place], history[place]["content"])
            pieces.append((turn, True))
            done += turn
    return pieces


def _learned(row: _Row) -> Tensor:
    """Return the learned tokens of a prompt, the others ignored; nothing comes before the first one."""
    kept = [i if learned else IGNORED for i, learned in zip(row.prompt, row.learned, strict=True)]
    return torch.tensor([IGNORED, *kept[1:]])


def _fitted(row: _Row, config: LanguageTask, words: Vocabulary, where: str, longer: int) -> _Row:
    """Return a row that is not longer than the base reads; ``longer`` is the number of rows that are."""
    if not row.prompt:
        raise DataError("a prompt has no tokens", where=where, fix="drop the row, or begin prompts with a text")
    excess = len(row.prompt) + row.longest - words.most
    if excess <= 0:
        return row
    if config.truncation == "refuse":
        fix = "raise base.max_length, drop such rows, or set truncation: left or right in the task"
        got = f"{words.most + excess} tokens" + (f", the first of {longer} such rows" if longer > 1 else "")
        raise DataError(f"a row is longer than {words.most} tokens", got=got, where=where, fix=fix)
    if config.form == "text":
        ids = [*row.prompt, *row.target]
        ids = ids[excess:] if config.truncation == "left" else ids[:-excess]
        return replace(row, prompt=ids[:1], target=ids[1:])
    if excess >= len(row.prompt):
        fix = "raise base.max_length, or drop the row"
        raise DataError(f"an answer alone is longer than {words.most} tokens", where=where, fix=fix)
    if config.truncation == "right":
        return replace(row, prompt=row.prompt[:-excess], learned=row.learned[:-excess])
    first = int(row.prompt[0] == words.tokenizer.bos_token_id and excess < len(row.prompt) - 1)  # it stays in front
    prompt, learned = ([*part[:first], *part[first + excess :]] for part in (row.prompt, row.learned))
    return replace(row, prompt=prompt, learned=learned)


def _refuse_long_answers(rows: Sequence[_Row], most: int, table: Table) -> None:
    for number, row in enumerate(rows):
        if len(row.target) > most:
            fix = "raise base.max_new_tokens, or that of the task"
            got = f"{len(row.target)} tokens with the end"
            raise DataError(f"an answer has more than {most} tokens", got=got, where=table.place(number), fix=fix)
