"""`load_model`: from an adapter's folder to the network in which it was trained and scored."""

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
from tangora.adapters.formats.lora.names import sort_tensors
from tangora.adapters.formats.lora.reading import CONFIG, weights_path
from tangora.adapters.formats.tuners.files import config_of, kind_of
from tangora.adapters.formats.tuners.files import sort_tensors as tensors_of
from tangora.adapters.heads import read_records
from tangora.adapters.kinds import KINDS
from tangora.adapters.metadata import BaseInfo, Metadata, read_metadata
from tangora.adapters.model_classes import labels_of, model_class, vocabulary_of
from tangora.config.recipe import BaseSettings
from tangora.config.tasks import base_settings, with_revision
from tangora.errors import AdapterError, ArgumentError, FileError, ModelError
from tangora.modes.contract import mode_of
from tangora.modes.task_models import BaseLike, TaskNetwork, open_task
from tangora.storage.header import read_header
from tangora.storage.hub import located
from tangora.support.files import inside, read_json
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.tasks.base import Base, pretrained, take_out, weights_fingerprint
from tangora.tasks.load import load_base

__all__ = ["load_model"]


def load_model(
    folder: str | os.PathLike[str],
    base: nn.Module | Base | str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    trust_remote_code: bool = False,
    same_base: bool = False,
) -> nn.Module:
    """Return the model in the form in which an adapter was trained and scored, in evaluation mode.

    With ``task``, it is a `tangora.modes.task_models.TaskNetwork`: inputs in, the task's logits out, as they are
    scored. The task's head is built in, from the adapter's own files: a trained head is loaded, class names are
    embedded by the base. ``model.encode(rows)`` makes the inputs. To get answers, `tangora.predictor` is shorter.

    Without ``task``, it is the network alone: for an adapter with trained heads (``heads/``) a network without any of
    them, for a zero-shot one a network that returns features. Its mode decides: ``lora`` gives stock peft's
    `PeftModel`, ``full`` the base with its weights changed, ``l-lora`` the `PeftModel` linearized at φ₀
    (`tangora.linearize`), and ``tangent`` and ``full-tangent`` a `tangora.TangentModel` around the base,
    ``f(x; φ₀) + J(x) (φ − φ₀)`` (arXiv:2310.04742, eq. 4).

    Choose it to run an adapter of any mode; `tangora.load` reads one as a value, to inspect or to fuse, without a base
    model. The files of an L-LoRA adapter with B₀ ≠ 0, or of one that was truncated to a rank, contain the expansion as
    plain factors, and the `PeftModel` uses them unchanged. A tangent model expands what the base returns;
    `TangentModel.then` includes what follows, such as pooling and a head, in the expansion.

    Args:
        folder: the adapter's, or its name on the Hub; with ``task`` also that of a checkpoint that adapters were merged
            into.
        base: the base model, which is wrapped or changed in place, or its folder or Hub id. By default, the model named
            in ``tangora.json`` or ``base_model_name_or_path`` is loaded, with its weights in the form of the training.
            Its class is that of its family, else of ``auto_mapping``, ``task_type`` or the checkpoint's
            ``architectures``. With ``task``, a base from `tangora.load_base` or a name, since inputs need a tokenizer
            or an image processor too.
        task: one of the tasks in ``heads/*.json``.
        trust_remote_code: run code from the base model's repository.
        same_base: accept a base whose fingerprint differs from the recorded one (after a cast, or with a resized
            vocabulary).

    Raises:
        FileError, AdapterError: as `tangora.load`.
        ArgumentError: there is no such task, or the base is a bare module.
        ModelError: the base is not found, lacks the adapted layers, or has other weights than ``tangora.json`` records.

    >>> import peft, tempfile, torch
    >>> def base():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"])).save_pretrained(folder)
    ...     model = load_model(folder, base())
    >>> type(model).__name__, model.training
    ('PeftModel', False)
    >>> model = load_model("adapters/one", task="one")
    >>> model(**model.encode(["a red photo", "this is blue"])).shape, model.labels
    (torch.Size([2, 3]), ['red', 'green', 'blue'])
    """
    if task is not None:
        return TaskNetwork(
            open_task(folder, task, _not_bare(base), Machine(), trust=trust_remote_code, same_base=same_base)
        )
    if isinstance(base, Base):
        base = base.backbone
    path = located(folder, "adapter")
    metadata, config = _descriptions(path)
    if isinstance(base, nn.Module):
        model = base
    else:
        recorded = _recorded_settings(path)
        model = _loaded(metadata, _Loader(config, _saved_whole(path, config)), recorded, base, trust_remote_code)
    # The adapter was trained without these layers, and its targets may match names in them.
    take_out(model, _unused(metadata.base.family) if same_base else _unused_in(model, metadata, path))
    with _in_own_format(path) as folder_of_kind:
        return mode_of(metadata).load_model(folder_of_kind, model)


def _not_bare(base: nn.Module | Base | str | os.PathLike[str] | None) -> BaseLike | None:
    """Refuse a module without the preprocessing of its family."""
    if isinstance(base, nn.Module):
        fix = "give its folder or Hub id, or what tangora.load_base returns"
        raise ArgumentError(
            "a task needs a base with its preprocessing", got=type(base).__name__, where="base", fix=fix
        )
    return base


@contextlib.contextmanager
def _in_own_format(path: Path) -> Iterator[Path]:
    """Yield a folder with the adapter in the format of its kind: a copy if it is in another package's format."""
    format_ = format_of(path)
    if format_.name == KINDS[format_.kind].format or getattr(format_, "in_peft", False):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tangora-") as scratch:
        load(path).save(scratch)
        yield Path(scratch)


def _descriptions(path: Path) -> tuple[Metadata, Mapping[str, Any]]:
    """Return the contents of ``tangora.json`` and ``adapter_config.json``; either may be missing."""
    if not path.exists():
        fix = "give the folder that holds adapter_config.json, or org/name of the Hub"
        raise FileError("no such folder", where=path, fix=fix)
    metadata = read_metadata(path) if path.is_dir() else None
    if (metadata is not None and not metadata.of_kind.in_peft) or not (path / CONFIG).exists():
        return metadata or load(path).metadata, {}
    config = read_json(inside(path, CONFIG))
    named = BaseInfo(model=config.get("base_model_name_or_path") or None, revision=config.get("revision"))
    return metadata or Metadata(base=named), config


def _recorded_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the base that the adapter's tasks record, since a head decides parts of the backbone."""
    records = read_records(path) if path.is_dir() else {}
    return next((dict(record.base) for record in records.values()), {})


def _loaded(
    metadata: Metadata,
    loader: _Loader,
    recorded: Mapping[str, Any],
    base: str | os.PathLike[str] | None,
    trust: bool,
) -> nn.Module:
    """Load the base, by its family and settings if they are known, so that it equals the one used in training."""
    name = metadata.base.model if base is None else os.fspath(base)
    if name is None:
        raise ModelError("nothing names the base model", where="load_model.base", fix="give it as base=")
    named = {"model": name, "revision": metadata.base.revision if base is None else None}
    keys: dict[str, Any] = {**with_revision(named, "model", "revision"), "trust_remote_code": trust}
    if metadata.base.family is not None:
        settings = {**recorded, "family": metadata.base.family, **keys}
        return load_base(base_settings(settings, "load_model.base")).backbone
    keys["family"] = "that its configuration names"  # shown only if the checkpoint does not fit
    return pretrained(loader, BaseSettings.model_construct(None, **keys), replaced=loader.whole)


@dataclass(frozen=True)
class _Loader:
    """``from_pretrained`` of the class named by an adapter's configuration or by its base's checkpoint.

    Args:
        adapter: ``adapter_config.json``.
        whole: the shapes of parameters that the adapter saved whole. Its head may be in them alone.
    """

    adapter: Mapping[str, Any]
    whole: Mapping[str, tuple[int, ...]]

    def from_pretrained(self, name: str, *, revision: str | None, trust_remote_code: bool, **options: Any) -> Any:
        import transformers  # deferred: it takes seconds to import

        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        mapping = self.adapter.get("auto_mapping") or {}
        if not isinstance(mapping, Mapping) or not isinstance(mapping.get("base_model_class", ""), str):
            what = "auto_mapping must be a table with a name at base_model_class"
            raise AdapterError(what, got=mapping, where=CONFIG, fix="correct it, or leave it out")
        named = model_class(self.adapter)
        if named is None:
            named = (transformers.AutoConfig.from_pretrained(name, **source).architectures or ["AutoModel"])[0]
        chosen = getattr(transformers, str(named), transformers.AutoModel)
        if not isinstance(chosen, type) or not hasattr(chosen, "from_pretrained"):
            fix = "name a model class of transformers, or leave it out"
            raise AdapterError("auto_mapping names no model class", got=named, where=CONFIG, fix=fix)
        if (labels := labels_of(self.whole)) is not None:
            options |= {"num_labels": labels, "ignore_mismatched_sizes": True}
        model, info = chosen.from_pretrained(name, **source, **options)
        rows = vocabulary_of(self.whole)
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return model, info


def _saved_whole(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that a PEFT adapter saved whole."""
    if not config:
        return {}
    file = weights_path(path)
    header = read_header(file)
    if kind_of(path) not in (None, "LORA"):
        whole = tensors_of(header, *config_of(path), file).whole
    else:
        whole = sort_tensors(header, config, file).whole
    return {name: stored.shape for name, stored in whole.items()}


def _unused(family: str | None) -> tuple[str, ...]:
    """Return the children of the base that a family removes."""
    return FAMILIES.get(family).unused if family is not None and family in FAMILIES else ()


def _unused_in(model: nn.Module, metadata: Metadata, path: Path) -> tuple[str, ...]:
    """Return the children without which a model has the recorded fingerprint: what the family, or a head, does not use.

    Raises:
        ModelError: it has other weights.
    """
    expected, unused = metadata.base.fingerprint, _unused(metadata.base.family)
    if expected is None:
        return unused
    for children in ((), unused, (*unused, "pooler")):
        if weights_fingerprint(model, children) == expected:
            return (*unused, *children)
    got = f"{type(model).__name__} of weights {weights_fingerprint(model)[:12]}"
    what = f"the adapter was made for {metadata.base.model or 'a base'} of weights {expected[:12]}"
    fix = "give that model, in float32 and not wrapped by peft; if it is the same in another form, pass same_base=True"
    raise ModelError(what, got=got, where=path, fix=fix)
