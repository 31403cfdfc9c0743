"""`load_model`: from an adapter's folder to the network that it was trained and scored as."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tangora.adapters.adapter import load
from tangora.adapters.contract import format_of
from tangora.adapters.formats.lora.reading import CONFIG
from tangora.adapters.kinds import KINDS
from tangora.adapters.metadata import BaseInfo, Metadata, read_metadata
from tangora.config.recipe import BaseSettings
from tangora.config.tasks import base_settings
from tangora.errors import FileError, ModelError
from tangora.modes.contract import mode_of
from tangora.support.files import inside, read_json
from tangora.support.seams import FAMILIES
from tangora.tasks.base import pretrained, take_out, weights_fingerprint
from tangora.tasks.load import load_base

__all__ = ["load_model"]

_AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""peft's task types -> the class that loads their base."""


def load_model(
    folder: str | os.PathLike[str],
    base: nn.Module | str | os.PathLike[str] | None = None,
    *,
    trust_remote_code: bool = False,
    same_base: bool = False,
) -> nn.Module:
    """The model that an adapter was trained and scored as, in evaluation mode.

    Its mode decides: ``lora`` gives stock peft's `PeftModel`, ``full`` the base with its weights changed, ``l-lora``
    the `PeftModel` linearized at φ₀ (`tangora.linearize`), and ``tangent`` and ``full-tangent`` a
    `tangora.TangentModel` around the base, ``f(x; φ₀) + J(x) (φ − φ₀)`` (arXiv:2310.04742, eq. 4).

    Choose it to use an adapter of any mode; `tangora.load` reads one as a value, to look at or to fuse, without a base
    model. Of an L-LoRA adapter with B₀ ≠ 0, and of one that was cut to a rank, the file holds the expansion as plain
    factors, which the `PeftModel` computes as they are. A tangent model expands what the base returns:
    `TangentModel.then` takes what follows it, such as pooling and a head, into the expansion. Heads that are kept per
    task (``heads/``) are no part of the model: load one into the base first.

    Args:
        folder: the adapter's.
        base: the base model, which is wrapped or changed in place, or where transformers finds it: a folder or Hub id.
            By default what ``tangora.json`` or ``base_model_name_or_path`` names, in float32, by the class that its
            family, ``auto_mapping``, ``task_type`` or the checkpoint's ``architectures`` say, in this order.
        trust_remote_code: run code from the base model's repository.
        same_base: the base's weights are the right ones although their fingerprint is another (a cast, a resized
            vocabulary).

    Raises:
        FileError, AdapterError: as `tangora.load`.
        ModelError: the base is not found, has no such layers, or its weights are not those that ``tangora.json`` tells.

    >>> import peft, tempfile, torch
    >>> def base():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"])).save_pretrained(folder)
    ...     model = load_model(folder, base())
    >>> type(model).__name__, model.training
    ('PeftModel', False)
    """
    place = Path(folder)
    about, config = _told(place)
    model = base if isinstance(base, nn.Module) else _loaded(about, config, base, trust_remote_code)
    if not same_base:
        _refuse_another(model, about, place)
    take_out(model, _unused(about.base.family))  # it was trained without, and targets may match a layer there
    with _in_own_format(place) as folder_of_kind:
        return mode_of(about).load_model(folder_of_kind, model)


@contextlib.contextmanager
def _in_own_format(place: Path) -> Iterator[Path]:
    """The adapter in the format of its kind: a copy of one that is in another package's format."""
    format_ = format_of(place)
    if format_.name == KINDS[format_.kind].format:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="tangora-") as scratch:
        load(place).save(scratch)
        yield Path(scratch)


def _told(place: Path) -> tuple[Metadata, Mapping[str, Any]]:
    """The contents of ``tangora.json`` and ``adapter_config.json``; either may be missing."""
    if not place.exists():
        raise FileError("no such folder", where=place, fix="give the folder that holds adapter_config.json")
    about = read_metadata(place) if place.is_dir() else None
    if (about is not None and not about.of_kind.in_peft) or not (place / CONFIG).exists():
        return about or load(place).metadata, {}
    config = read_json(inside(place, CONFIG))
    named = BaseInfo(model=config.get("base_model_name_or_path") or None, revision=config.get("revision"))
    return about or Metadata(base=named), config


def _loaded(about: Metadata, config: Mapping[str, Any], base: str | os.PathLike[str] | None, trust: bool) -> nn.Module:
    """The base in float32, by its family where that is known, so that it is what the adapter was trained on."""
    name = about.base.model if base is None else os.fspath(base)
    if name is None:
        raise ModelError("nothing names the base model", where="load_model.base", fix="give it as base=")
    told: dict[str, Any] = {
        "model": name,
        "revision": about.base.revision if base is None else None,
        "trust_remote_code": trust,
    }
    if about.base.family is not None:
        return load_base(base_settings({"family": about.base.family, **told}, "load_model.base")).backbone
    told["family"] = "that its configuration names"  # in no message but that of a checkpoint that does not fit
    return pretrained(_Loader(config), BaseSettings.model_construct(None, **told))


@dataclass(frozen=True)
class _Loader:
    """``from_pretrained`` of the class that an adapter's configuration or its base's checkpoint names."""

    adapter: Mapping[str, Any]

    def from_pretrained(self, name: str, *, revision: str | None, trust_remote_code: bool, **options: Any) -> Any:
        import transformers  # deferred: it takes seconds to import

        place: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        named = (self.adapter.get("auto_mapping") or {}).get("base_model_class") or _AUTO.get(
            str(self.adapter.get("task_type"))
        )
        if named is None:
            named = (transformers.AutoConfig.from_pretrained(name, **place).architectures or ["AutoModel"])[0]
        return getattr(transformers, named, transformers.AutoModel).from_pretrained(name, **place, **options)


def _unused(family: str | None) -> tuple[str, ...]:
    """Children of the base that a family leaves out."""
    return FAMILIES.get(family).unused if family is not None and family in FAMILIES else ()


def _refuse_another(model: nn.Module, about: Metadata, place: Path) -> None:
    """Other weights than those whose fingerprint was written down, which does not cover what the family leaves out."""
    told = about.base.fingerprint
    if told is None or told in (weights_fingerprint(model), weights_fingerprint(model, _unused(about.base.family))):
        return
    got = f"{type(model).__name__} of weights {weights_fingerprint(model)[:12]}"
    what = f"the adapter was made for {about.base.model or 'a base'} of weights {told[:12]}"
    fix = "give that model, in float32 and not wrapped by peft; if it is the same in another form, say same_base=True"
    raise ModelError(what, got=got, where=place, fix=fix)
