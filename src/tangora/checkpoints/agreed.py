"""Settings of tokenizer and generation in which all models agree, and the base does not.

Chat models that were tuned from one base have a chat template and end tokens that the base does not have. A setting is
the models' if all of them have the same value; else it stays the base's, and a note lists it. A model without a file
has no opinion, so that not all agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.storage.checkpoint import CONFIG
from tangora.support.files import inside, read_json

__all__ = ["IDS", "SETTINGS", "TEMPLATES", "agree", "template_of"]

IDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
"""The keys of ``config.json`` that the models may agree on."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""The files that are merged by keys."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""The files of a chat template."""
_TOKENS = (
    *("eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens", "add_bos_token", "add_eos_token", "padding_side"),
)
_PASSING = ("transformers_version", "_from_model_config")


def agree(
    file: str, base: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], known: Collection[str] | None
) -> tuple[dict[str, Any], list[str]]:
    """Return a file's settings, with the values that all models have, and notes.

    Args:
        file: its name.
        base: the settings that stand otherwise.
        models: name -> the model's settings; empty without the file.
        known: the tokens of the output's tokenizer; None if they are not known. An unknown token is not taken over.
    """
    keys = _keys(file, models)
    changed, left = dict(base), []
    taken = []
    for key in keys:
        values = [settings[key] for settings in models.values() if key in settings]
        if all(value == base.get(key) for value in values):
            continue
        common = len(values) == len(models) and all(value == values[0] for value in values)
        if common and (known is None or not key.endswith(("_token", "_tokens")) or _words(values[0]) <= set(known)):
            changed[key] = values[0]
            taken.append(key)
        else:
            left.append(key)
    notes = [f"{file}: {', '.join(taken)} as in all models"] if taken else []
    if left:
        notes.append(f"{file}: {', '.join(left)} as in the base; the models' are left out, as not all have the same")
    return changed, notes


def _keys(file: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = dict.fromkeys(key for settings in models.values() for key in settings)
    if file == "generation_config.json":
        return [key for key in found if key not in _PASSING]
    return [key for key in found if key in (IDS if file == CONFIG else _TOKENS)]


def _words(value: Any) -> set[str]:
    """Return the tokens in a setting: texts, tables with ``content``, or lists or tables of these."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        return _words(value["content"]) if "content" in value else _words(list(value.values()))
    return {word for one in value for word in _words(one)} if isinstance(value, list) else set()


def template_of(folder: Path) -> Mapping[str, Any]:
    """Return a folder's chat templates by name, empty if it has none: the file counts more than the configuration."""
    found: dict[str, Any] = {}
    with suppress(FileError):
        if (stated := read_json(inside(folder, "tokenizer_config.json")).get("chat_template")) is not None:
            found["default"] = stated
    with suppress(FileError):
        found["processor"] = read_json(inside(folder, "chat_template.json")).get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        found["default"] = inside(folder, "chat_template.jinja").read_text(encoding="utf-8", errors="surrogateescape")
    home = folder / "additional_chat_templates"
    for path in sorted(home.glob("*.jinja")) if home.is_dir() else ():
        found[path.name] = inside(home, path.name).read_text(encoding="utf-8", errors="surrogateescape")
    return found
