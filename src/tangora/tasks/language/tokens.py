"""Tokens of prompts, completions and chats, by the tokenizer of a base model.

Prompt and completion are converted apart, so that training and generation see the same tokens of a prompt. In a chat,
the text of a turn is what the template adds to the text of the turns before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError, ModelError

if TYPE_CHECKING:
    from tangora.config.language import LanguageModel, LanguageTask
    from tangora.tasks.base import Base

__all__ = ["Vocabulary", "vocabulary"]

_LETTER = "x"


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a base, with the tokens that end an answer.

    Attributes:
        tokenizer: of transformers.
        ends: ids of the tokens that end an answer; the first one is learned.
        most: the largest number of tokens of a row.
        arguments: of the chat template.
        where: the row whose chat is converted, for errors.
    """

    tokenizer: Any
    ends: tuple[int, ...]
    most: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = "messages"

    def start(self, text: str) -> list[int]:
        """Return the tokens of the first part of a row, with the token that the tokenizer puts in front, if any.

        An empty part has one token, which begins a text.
        """
        ids: list[int] = list(self.tokenizer(text, verbose=False)["input_ids"])
        while ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(str(self.tokenizer.eos_token)):
            ids.pop()  # some tokenizers end every text
        if not ids and not text:
            first = self.tokenizer.bos_token_id
            return [self.ends[0] if first is None else int(first)]
        return ids

    def more(self, text: str) -> list[int]:
        """Return the tokens of a further part of a row.

        Tokenizers of SentencePiece put a space in front of every text, which would be a second one in front of a part
        that begins with a space. So such a part is converted behind a letter.
        """
        alone = self._bare(text)
        if not text[:1].isspace():
            return alone
        letter, joined = self._bare(_LETTER), self._bare(_LETTER + text)
        return joined[len(letter) :] if joined[: len(letter)] == letter else alone

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of an answer with one that ends it: what follows such a token is dropped."""
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] in self.ends:
                return list(ids[: place + 1])
        return [*ids, self.ends[0]]

    def chat(self, messages: Sequence[Mapping[str, str]], *, answered: bool) -> str:
        """Return the text of a chat by the tokenizer's template.

        Args:
            messages: with role and content.
            answered: whether the last message is the assistant's answer; if not, the text ends where one begins.

        Raises:
            ModelError: the tokenizer has no template.
            DataError: the template refuses the messages.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            fix = "use a base with a template, or rows with prompt and target, without chat: true"
            raise ModelError("the tokenizer has no chat template", where="base.model", fix=fix)
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not answered,
                **self.arguments,
            )
        except Exception as cause:  # templates raise errors of their own
            detail = " ".join(str(cause).split())[:200]
            fix = "correct or drop the row; a template may want turns that alternate, or no system message"
            raise DataError(
                f"the chat template refuses a conversation ({detail})", where=self.where, fix=fix
            ) from cause
        return text

    def turn(self, history: Sequence[Mapping[str, str]], answer: str) -> str:
        """Return what the template adds to a chat for the assistant's answer.

        Raises:
            ModelError: the template changes the chat if an answer follows.
        """
        before = self.chat(history, answered=False)
        whole = self.chat([*history, {"role": "assistant", "content": answer}], answered=True)
        if not whole.startswith(before):
            what = "the chat template does not begin an answer with what it puts at the end of a question"
            fix = "use rows with prompt and target, without chat"
            raise ModelError(what, got=whole[:200], where="base.model", fix=fix)
        return whole[len(before) :]


def vocabulary(base: Base, config: LanguageTask) -> Vocabulary:
    """Return the tokenizer of a base for a task, with the tokens that end an answer.

    Raises:
        ModelError: there is no such token.
    """
    settings: LanguageModel = base.config  # type: ignore[assignment]
    backbone: Any = base.backbone
    named = getattr(backbone.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    ends = dict.fromkeys(int(i) for i in [base.processor.eos_token_id, *listed] if i is not None)
    if not ends:
        raise ModelError("the tokenizer has no end token", where="base.model", fix="set eos_token in its configuration")
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    limits = [settings.max_length, positions, base.processor.model_max_length]
    return Vocabulary(base.processor, tuple(ends), min(int(limit) for limit in limits if limit), config.chat_arguments)
