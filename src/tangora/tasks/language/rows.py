"""The texts of a row: its prompt or conversation, its completion, its choices. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.errors import DataError
from tangora.support.validation import did_you_mean
from tangora.tasks.contract import Targets
from tangora.tasks.templates import filled, formatted, text_targets

if TYPE_CHECKING:
    from tangora.config.language import LanguageTask
    from tangora.tasks.sources import Table

__all__ = [
    "ROLES",
    "Conversation",
    "choices_of",
    "column_of",
    "conversations",
    "plain_texts",
    "prompts_of",
    "shown",
    "targets_of",
]

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, str]


@dataclass(frozen=True)
class Conversation:
    """A conversation up to the turn that answers it, and that turn.

    Attributes:
        history: all messages before the answer.
        answer: the content of the last message if the assistant gives it, else None.
    """

    history: tuple[Message, ...]
    answer: str | None


def column_of(table: Table, column: str, key: str) -> list[Any]:
    """Return the values of a column.

    Raises:
        DataError: there is no such column, or a row has no value.
    """
    table.need(column, key)
    values = table.column(column)
    for row, value in enumerate(values):
        if value is None:
            raise DataError("a value is missing", got=None, where=table.place(row, column), fix="drop the row")
    return values


def plain_texts(table: Table, config: LanguageTask) -> list[str]:
    """Return the text of each row of a task with plain texts.

    Raises:
        DataError: there is no such column, or a row has no text.
    """
    assert config.text is not None
    texts = column_of(table, config.text, "text")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            where, fix = table.place(row, config.text), "drop the row"
            raise DataError("a text is missing, empty or not a text", got=text, where=where, fix=fix)
    return texts


def prompts_of(table: Table, config: LanguageTask) -> list[str]:
    """Return the prompt of each row of a task with prompts or choices.

    Raises:
        DataError: a column is unknown, or a row has no text.
    """
    if not config.prompt:  # the rows have something else to answer, such as an image
        return [""] * len(table)
    return filled(table, formatted(table, config.prompt, "prompt", {}), "a prompt is empty")


def conversations(table: Table, config: LanguageTask) -> list[Conversation]:
    """Return the conversation of each row of a task with messages.

    Raises:
        DataError: a row is no list of messages, a role is unknown, or the order of the roles cannot be answered.
    """
    assert config.messages is not None
    rows = column_of(table, config.messages, "messages")
    return [_conversation(value, config, table.place(row, config.messages)) for row, value in enumerate(rows)]


def _conversation(value: Any, config: LanguageTask, where: str) -> Conversation:
    fix = "give a list of messages, each with role and content"
    if not isinstance(value, Sequence) or isinstance(value, str) or not len(value):
        raise DataError("a row is no list of messages", got=value, where=where, fix=fix)
    messages = [_message(item, f"{where}, message {index}") for index, item in enumerate(value)]
    if config.system is not None:
        if messages[0]["role"] == "system":
            raise DataError("a row has a system message of its own", where=where, fix="leave system out")
        messages.insert(0, {"role": "system", "content": config.system})
    answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not any(message["role"] == "user" for message in messages):
        raise DataError("a conversation has no message of the user", where=where, fix="drop the row")
    return Conversation(tuple(messages), answer)


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise DataError("a message is no table", got=item, where=where, fix="give role and content")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        fix = did_you_mean(str(role), list(ROLES))
        raise DataError("the role of a message is unknown", got=role, where=where, fix=fix)
    if not isinstance(content, str):
        fix = "give a text; calls of tools and images are not supported"
        raise DataError("the content of a message is not a text", got=content, where=where, fix=fix)
    if role == "user" and not content.strip():
        raise DataError("a message of the user is empty", got=content, where=where, fix="drop the row")
    return {"role": str(role), "content": content}


def choices_of(table: Table, config: LanguageTask) -> list[list[str]]:
    """Return the choices of each row of a task with choices.

    Raises:
        DataError: the column is unknown, or a row has fewer than two different choices.
    """
    if isinstance(config.choices, list):
        return [config.choices] * len(table)
    assert config.choices is not None
    rows = column_of(table, config.choices, "choices")
    for row, value in enumerate(rows):
        texts = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
        if not texts or len({v.strip() for v in value}) < max(2, len(value)) or not all(v.strip() for v in value):
            fix = "give a list of at least two different texts"
            raise DataError("the choices of a row cannot be used", got=value, where=table.place(row), fix=fix)
    return [list(value) for value in rows]


def targets_of(tables: Mapping[str, Table], config: LanguageTask) -> Targets:
    """Return the target of each row: the completion, all correct answers, or the number of bytes of a plain text.

    Raises:
        DataError: a column is unknown, or a row has no answer, or (with choices) one that is not among its choices.
    """
    if config.form == "text":
        sizes = {split: [len(text.encode()) for text in plain_texts(table, config)] for split, table in tables.items()}
        return Targets([], sizes, stratify=False)
    if config.form == "messages":
        return Targets([], {split: _answers(table, config) for split, table in tables.items()}, stratify=False)
    chosen = _by_number(tables, config) if config.form == "choices" else None
    found = chosen or text_targets(tables, config)
    for split, table in tables.items():
        _check_targets(table, found.of_split[split], config)
    if config.references is None:
        return found
    of_split = {split: _with_references(table, found.of_split[split], config) for split, table in tables.items()}
    return Targets(found.classes, of_split, stratify=False)


def _by_number(tables: Mapping[str, Table], config: LanguageTask) -> Targets | None:
    """Return the choices that the label column names, by number or text; None if ``target`` is given."""
    if config.target != type(config).model_fields["target"].default or any(
        config.label not in table.columns for table in tables.values()
    ):
        return None
    of_split = {}
    for split, table in tables.items():
        numbers, choices = column_of(table, config.label, "label"), choices_of(table, config)
        picked = []
        for row, (number, offered) in enumerate(zip(numbers, choices, strict=True)):
            place = table.place(row, config.label)
            if isinstance(number, str) and number in offered:
                picked.append(number)
                continue
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(offered):
                fix = f"give a number from 0 to {len(offered) - 1}, or one of the choices"
                raise DataError("a label names no choice", got=number, where=place, fix=fix)
            picked.append(offered[number])
        of_split[split] = picked
    return Targets([], of_split, stratify=False)


def _check_targets(table: Table, targets: Sequence[str], config: LanguageTask) -> None:
    offered = choices_of(table, config) if config.form == "choices" else None
    for row, target in enumerate(filled(table, list(targets), "a row has no answer")):
        if offered is not None and target not in offered[row]:
            where, fix = table.place(row), f"its choices are {', '.join(offered[row][:8])}"
            raise DataError("the answer is not among the choices", got=target, where=where, fix=fix)


def _answers(table: Table, config: LanguageTask) -> list[str]:
    answers = []
    for row, one in enumerate(conversations(table, config)):
        if one.answer is None or not one.answer.strip():
            where, fix = table.place(row, config.messages), "end the conversation with a message of the assistant"
            raise DataError("a row has no answer", got=one.answer, where=where, fix=fix)
        answers.append(one.answer)
    return answers


def _with_references(table: Table, targets: Sequence[str], config: LanguageTask) -> list[Any]:
    """Return all correct answers of each row; a split without the column has one for each row, its completion."""
    assert config.references is not None
    if config.references not in table.columns:
        return list(targets)
    rows: list[Any] = []
    for row, value in enumerate(table.column(config.references)):
        listed = [value] if isinstance(value, str) else list(value or [targets[row]])
        if not all(isinstance(text, str) and text.strip() for text in listed):
            where, fix = table.place(row, config.references), "give a list of texts"
            raise DataError("a reference is empty or not a text", got=listed, where=where, fix=fix)
        rows.append(tuple(listed))
    return rows


def shown(table: Table, config: LanguageTask) -> list[str]:
    """Return the rows in a form for people: the prompt, the last message before the answer, or the text."""
    if config.form == "messages":
        return [one.history[-1]["content"] for one in conversations(table, config)]
    return plain_texts(table, config) if config.form == "text" else prompts_of(table, config)
