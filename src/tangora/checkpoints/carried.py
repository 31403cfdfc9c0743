"""Choose the files that a fused checkpoint takes over besides its tensors, and list what is left out.

From the base: configurations, code, licences, and the modules of sentence-transformers. From the folder chosen by its
vocabulary: the tokenizer. What all models have in common counts more than the base's: a chat template, end tokens,
settings of generation (`tangora.checkpoints.agreed`), and files that the base does not have. Weights are never taken
over, except those of further modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tangora.checkpoints.agreed import IDS, SETTINGS, TEMPLATES, agree, template_of
from tangora.checkpoints.tokens import files_of, tokens_of
from tangora.errors import FileError
from tangora.storage.recognition import CONFIG, weights_of
from tangora.support.files import inside, read_json
from tangora.support.json_text import parse_json

__all__ = ["Carried", "carry", "is_tokenizer", "same_content", "small_files"]

_TOKENIZER = re.compile(
    r"tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|tekken\.json|normalizer\.json"
    r"|.*\.(model|spm|tiktoken|codes|bpe)|chat_template\.(jinja|json)|additional_chat_templates/.*|.*_vocab\.json"
    r"|vocab-.*\.json|emoji\.json|byte_maps\.json|dict\.txt|word_(shape|pronunciation)\.json|prophetnet\.tokenizer"
)
_SMALL = re.compile(
    r".*\.(json|jinja|py|model|spm|tiktoken|codes|bpe|md|tokenizer)|(licen[cs]e|notice|copying)[^/]*", re.IGNORECASE
)
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|npz|npy|pkl|pickle|index\.json)")
_OWN = re.compile(r"config\.json|README\.md|tangora.*\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_TRAINING = re.compile(
    r"training_args.*|trainer_state\.json|(all|train|eval|predict|test)_results\.json|optimizer.*|scheduler.*"
    r"|rng_state.*|adapter_(config|model).*|quantize_config\.json|quant_config\.json|requirements.*\.txt"
)
_FOLDERS = ("additional_chat_templates", "custom_generate")


@dataclass(frozen=True)
class Carried:
    """The files beside the tensors of an output.

    Attributes:
        copies: path in the output -> the file to copy.
        written: path in the output -> JSON to write, in which the models agree on another value than the base.
        config: keys of ``config.json`` that the models agree on.
        notes: what was chosen and what is left out, for the user.
    """

    copies: Mapping[str, Path]
    written: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    notes: Sequence[str]


def carry(base: Path, tokenizer: Path, models: Mapping[str, Path]) -> Carried:
    """Choose the files of an output.

    Args:
        base: the base's folder.
        tokenizer: the folder that the tokenizer is copied from.
        models: name -> folder of a model, or of an adapter.

    Raises:
        FileError: a file leads out of its folder, or cannot be read.
    """
    notes = []
    if (common := _common_tokenizer(tokenizer, list(models.values()))) is not None:
        tokenizer = common
        notes.append("the tokenizer is the one that all models have")
    copies = {name: path for name, path in small_files(base).items() if not _TOKENIZER.fullmatch(name)}
    copies |= {name: path for name, path in small_files(tokenizer).items() if _TOKENIZER.fullmatch(name)}
    notes += _shared(copies, models)
    written, config, more = _agreed(copies, tokenizer, base, models)
    notes += more
    if left := sorted(_left(base)):
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        notes.append(f"left out of the base's files: {shown}")
    notes += [f"{name} is named by auto_map, but is not in the base" for name in _missing_code(base, copies)]
    return Carried(copies, written, config, notes)


def is_tokenizer(name: str) -> bool:
    """Return whether a path in a folder is that of a tokenizer's file, chat templates included."""
    return bool(_TOKENIZER.fullmatch(name))


def small_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that an output may take over, by their paths in it."""
    modules = _modules(folder)
    return {n: inside(p.parent, p.name) for n, p in _files(folder, modules).items() if _is_small(n, modules)}


def _files(folder: Path, modules: Sequence[str]) -> dict[str, Path]:
    """Return the files of a folder, of its further modules and templates, by their paths in it."""
    found = {}
    for home in (folder, *(folder / name for name in (*_FOLDERS, *modules) if (folder / name).is_dir())):
        if home.resolve() != folder.resolve() / home.relative_to(folder):
            raise FileError("a link that leads out of the folder", where=home, fix="copy the folder in its place")
        for path in sorted(home.iterdir()):
            if not path.name.startswith(".") and not path.is_dir():
                found[path.relative_to(folder).as_posix()] = path
    return found


def _common_tokenizer(tokenizer: Path, models: Sequence[Path]) -> Path | None:
    """Return the first model's folder if all models have one tokenizer that is to be used instead; None if not.

    It is, if the chosen folder has none, or one with the same tokens but other rules.
    """
    theirs = [files_of(model) for model in models]
    first = theirs[0]
    if not first or not all(len(paths) == len(first) and all(map(same_content, paths, first)) for paths in theirs):
        return None
    ours = files_of(tokenizer)
    if ours and (
        all(map(same_content, ours, first)) or ours[0].name != first[0].name or tokens_of(ours) != tokens_of(first)
    ):
        return None
    return models[0]


def _modules(folder: Path) -> list[str]:
    """Return the folders of a sentence encoder's further modules, which ``modules.json`` lists."""
    with suppress(FileError, OSError, ValueError):
        listed = parse_json(inside(folder, "modules.json").read_text(encoding="utf-8"))
        paths = [one.get("path") for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
        return [p for p in paths if isinstance(p, str) and p and re.fullmatch(r"[\w-]+", p)]
    return []


def _is_small(name: str, modules: Sequence[str]) -> bool:
    """Whether an output takes over a file of this path: a further module's with its weights, others without."""
    first, _, rest = name.partition("/")
    if rest and first in modules:
        return rest.endswith(".safetensors") or not _WEIGHTS.fullmatch(rest)
    if _OWN.fullmatch(name) or _WEIGHTS.fullmatch(name) or _TRAINING.fullmatch(name):
        return False
    return bool(_SMALL.fullmatch(name) or _TOKENIZER.fullmatch(name))


def _left(base: Path) -> Iterator[str]:
    """Yield the entries of the base's folder that are left out; not the tensors, which are fused."""
    modules = _modules(base)
    files = _files(base, modules)
    taken = {PurePosixPath(name).parts[0] for name in files if "/" in name}
    yield from (name for name in files if not _OWN.fullmatch(name) and not _is_small(name, modules))
    for path in base.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in taken and path.name != "heads":
            yield f"{path.name}/"


def _shared(copies: dict[str, Path], models: Mapping[str, Path]) -> list[str]:
    """Add files that all models have in common, or replace the base's by them; return notes on those that differ."""
    theirs = {model: small_files(home) for model, home in models.items()}
    has_tokenizer = any(map(_TOKENIZER.fullmatch, copies))
    notes: list[str] = []
    differing = []
    compared: set[str] = set()  # by tokens, with notes of their own
    if has_tokenizer and all(weights_of(home) is not None for home in models.values()):
        compared = {path.name for home in models.values() for path in files_of(home)}
    for name in sorted({name for files in theirs.values() for name in files}):
        if name in SETTINGS or name in TEMPLATES or name.startswith("additional_chat_templates/"):
            continue
        having = [files[name] for files in theirs.values() if name in files]
        here = copies.get(name)
        if here is not None and all(same_content(path, here) for path in having):
            continue
        is_token = bool(_TOKENIZER.fullmatch(name))
        common = len(having) == len(models) and all(same_content(path, having[0]) for path in having[1:])
        code_of_others = name.endswith(".py") or re.fullmatch(r"[^/]*\.(md|txt)|(?i:licen[cs]e|notice).*", name)
        if common and not (is_token and has_tokenizer) and not (here is not None and code_of_others):
            copies[name] = having[0]
            notes.append(f"{name} is the one that all models have")
        elif name not in compared:
            differing.append(name)
    if differing:
        names = ", ".join(differing[:8]) + (f" and {len(differing) - 8} more" if len(differing) > 8 else "")
        notes.append(f"of the models' own files, left out or as in the base: {names}")
    return notes


def _agreed(
    copies: dict[str, Path], tokenizer: Path, base: Path, models: Mapping[str, Path]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any], list[str]]:
    """Return settings in which the models agree on another value than the base: by file, in ``config.json``, and notes.

    A file of a chat template that all models have is added to ``copies``.
    """
    known: Collection[str] | None = () if files_of(tokenizer) else None
    with suppress(FileError):  # the tokens of a damaged tokenizer are not known, and none is taken over
        known = tokens_of(paths) if (paths := files_of(tokenizer)) else None
    written: dict[str, Mapping[str, Any]] = {}
    notes: list[str] = []
    templates = {name: template_of(home) for name, home in models.items()}
    ours = template_of(tokenizer)
    stated = [one for one in templates.values() if one]
    agreed = len(stated) == len(models) and all(one == stated[0] for one in stated)
    if agreed and stated[0] != ours:
        source = next(iter(models.values()))
        for name in [n for n in copies if n in TEMPLATES or n.startswith("additional_chat_templates/")]:
            del copies[name]
        for name, path in small_files(source).items():
            if name in TEMPLATES or name.startswith("additional_chat_templates/"):
                copies[name] = path
        notes.append("the chat template is the one that all models have")
    elif odd := [name for name, one in templates.items() if one and one != ours]:
        notes.append(f"the chat template of {', '.join(odd)} is left out: not all models have the same")
    for name in SETTINGS:
        home = tokenizer if _TOKENIZER.fullmatch(name) else base
        before = read_json(inside(home, name)) if (home / name).is_file() else {}
        changed, more = agree(name, before, {m: _read(f, name) for m, f in models.items()}, known)
        if name == "tokenizer_config.json" and agreed and stated[0] != ours:
            mine = _read(next(iter(models.values())), name).get("chat_template")
            changed = {k: v for k, v in changed.items() if k != "chat_template"}
            changed |= {} if mine is None else {"chat_template": mine}
        notes += more
        if changed != before:
            written[name] = changed
    config = read_json(inside(base, CONFIG))
    changed, more = agree(CONFIG, config, {m: _read(f, CONFIG) for m, f in models.items()}, None)
    return written, {key: changed[key] for key in IDS if changed.get(key) != config.get(key)}, [*notes, *more]


def _read(folder: Path, name: str) -> Mapping[str, Any]:
    return read_json(inside(folder, name)) if (folder / name).is_file() else {}


def same_content(one: Path, other: Path) -> bool:
    """Return whether two files are equal; in JSON, versions and places do not count."""
    first, second = one.read_bytes(), other.read_bytes()
    if first == second or not one.name.endswith(".json"):
        return first == second
    with suppress(ValueError):
        return bool(_content(first) == _content(second))
    return False


def _content(text: bytes) -> Any:
    value = parse_json(text)
    passing = ("transformers_version", "_name_or_path", "name_or_path", "__version__")
    return {k: v for k, v in value.items() if k not in passing} if isinstance(value, dict) else value


def _missing_code(base: Path, copies: Mapping[str, Path]) -> list[str]:
    """Return the files that ``auto_map`` names and the base does not have; code on the Hub is not meant."""
    table = read_json(inside(base, CONFIG)).get("auto_map")
    values = [v for v in table.values() if isinstance(v, str)] if isinstance(table, Mapping) else []
    return sorted({f"{value.split('.')[0]}.py" for value in values if "--" not in value} - copies.keys())
