"""The frozen pretrained model that all adapters of a run share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora import quickstart
from tangora.errors import ArgumentError, FileError, ModelError
from tangora.storage.architecture import stored_folder
from tangora.storage.held import entries, hold_, is_held
from tangora.storage.hub import located
from tangora.storage.packed import contents, pack_
from tangora.storage.quantization import quantization_of, refused_quantized
from tangora.storage.recognition import CONFIG, ambiguous, contents_of, missing, weights_of
from tangora.storage.spread import automatic, spread_
from tangora.support.files import digest, read_json
from tangora.support.hub import hub_reference
from tangora.support.machine import Machine
from tangora.support.names import snapshot_of
from tangora.support.shown import html_table, one_line
from tangora.tasks.values import fingerprint_of

if TYPE_CHECKING:
    from tangora.config.tasks import BaseSettings

__all__ = ["Base", "pretrained", "processor", "refuse_other_tokens", "take_out", "weights_fingerprint"]

BUILTIN: Mapping[str, Callable[..., Path]] = {
    "builtin:quickstart": lambda *on_step: quickstart.encoder(*on_step),
    "builtin:decoder": lambda *on_step: quickstart.decoder(*on_step),
    "builtin:swin": lambda *on_step: quickstart.swin(*on_step),
}
"""The name of a built-in model -> a function that makes it on first use, and returns its folder."""


@dataclass
class Base:
    """A pretrained model: frozen, in evaluation mode. A family may extend it in a derived class.

    Its weights are in float32, or held in half precision (`tangora.storage.held`), as ``config.weights_dtype`` says.

    Attributes:
        config: the base's settings in the recipe.
        backbone: the part that is adapted: a vision tower, a sentence encoder, a sequence-to-sequence model.
        processor: image processor or tokenizer.
        fingerprint: sha-256 over the names, shapes and float32 values of the backbone's weights.
        machine: the backbone's device, and the dtype of forward passes.

    >>> import tangora
    >>> tangora.load_base("encoder", family="text-zero-shot")
    Base('encoder', text-zero-shot, BertModel)
    """

    config: BaseSettings
    backbone: nn.Module
    processor: Any
    fingerprint: str = ""
    machine: Machine = field(default_factory=Machine)

    @property
    def identity(self) -> str:
        """The key of results that are computed with the base: its weights, and the form in which they are held."""
        return self.config.identity(self.fingerprint)

    @property
    def commit(self) -> str | None:
        """The commit of a base that was loaded from the Hub; else the revision of the settings."""
        found = None
        if hub_reference(self.config.model) is not None:
            found = stored_folder(self.config.model, self.config.revision)
        snapshot = None if found is None else snapshot_of(found)
        return self.config.revision if snapshot is None else snapshot.name

    def place(self, machine: Machine) -> None:
        """Move the model to a machine's device, or spread it. A family that adds modules moves them too.

        Raises:
            ArgumentError: a model is to be spread in each of several processes.
            ModelError: the device map does not fit the model or the machine.
        """
        self.machine = machine
        places = self.config.device_map
        if places is None:
            self.backbone.to(machine.torch_device)
            return
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            fix = "start one process, or leave base.device_map out"
            raise ArgumentError("several processes cannot share spread models", where="base.device_map", fix=fix)
        chosen = automatic(self.backbone, places) if isinstance(places, str) else places
        spread_(self.backbone, chosen, machine.torch_device)

    def __repr__(self) -> str:
        return one_line("Base", repr(self.config.model), self.config.family, type(self.backbone).__name__)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        count = sum(entries(parameter) for parameter in self.backbone.parameters())
        facts = {"family": self.config.family, "class": type(self.backbone).__name__, "parameters": f"{count:,}"}
        return html_table(f"Base {self.config.model}", ["", ""], facts.items())


def weights_fingerprint(model: nn.Module, without: Sequence[str] = ()) -> str:
    """Return the sha-256 (hex) over names, shapes and values of a model's weights, without those of some children.

    The running statistics of batch normalization are among the weights, since predictions depend on them. Held weights
    count by their float32 values: a checkpoint in bfloat16 has one fingerprint, held as it is or in float32. Quantized
    weights count by their codes and scales.
    """
    prefixes = tuple(f"{name}." for name in without)
    weights = {**dict(model.named_parameters()), **_running_statistics(model)}
    held = {id(p): (m, n) for m in model.modules() if is_held(m) for n, p in m.named_parameters(recurse=False)}
    chosen = {n: p for n, p in weights.items() if not n.startswith(prefixes or "\0")}
    return digest({n: fingerprint_of(contents(*held[id(p)]) if id(p) in held else p) for n, p in chosen.items()})


def _running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the name of each mean and variance that a layer has kept -> its value."""
    kept: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = {"running_mean": module.running_mean, "running_var": module.running_var}
            kept |= {f"{name}.{key}": value for key, value in own.items() if value is not None}
    return kept


def take_out(model: nn.Module, children: Sequence[str]) -> None:
    """Replace the children of a model that its family does not use by None."""
    for name in children:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def location(config: BaseSettings) -> str:
    """Return the folder or Hub id for transformers; make the built-in model if the recipe names it."""
    if config.model in BUILTIN:
        return str(BUILTIN[config.model]())
    reference = hub_reference(config.model)
    if reference is None or not reference.subfolder:
        return config.model  # transformers looks it up
    return str(located(str(replace(reference, revision=config.revision)), "checkpoint"))


def pretrained(
    loader: Any,
    config: BaseSettings,
    *,
    unused: Sequence[str] = (),
    replaced: Collection[str] = (),
    fix: str = "use a checkpoint of this family",
) -> nn.Module:
    """Load a model through ``loader.from_pretrained``, with every weight from the checkpoint, in the base's dtype.

    Args:
        loader: an ``AutoModel`` class or a model class.
        config: the base's settings.
        unused: children whose weights may be missing, because the family does not use them.
        replaced: weights that may be missing or of another shape, because an adapter replaces them.
        fix: what to do if others are missing.

    Raises:
        ModelError: the model cannot be loaded, lacks weights, or computes a table that the dtype would round.
    """
    path, dtype = location(config), getattr(torch, config.weights_dtype)
    with _loading(config, path):
        model, info = loader.from_pretrained(
            path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code is True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    odd = {*info["missing_keys"], *(mismatched[0] for mismatched in info.get("mismatched_keys") or ())}
    missing = sorted(k for k in odd if k.split(".")[0] not in unused and k not in replaced)
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}",
            where=path,
            fix=fix,
        )
    _refuse_rounded_tables(model, dtype, path)
    hold_(model, dtype)
    return model if config.quantization is None else pack_(model, config.quantization, path)


def _refuse_rounded_tables(model: nn.Module, dtype: torch.dtype, path: str) -> None:
    """Refuse a buffer in half precision that no checkpoint holds: the model has computed it too coarsely."""
    if dtype == torch.float32:
        return
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            table, exact = module._buffers[key], getattr(module, f"scalar_{key}", None)
            if table is not None and table.numel() == 1 and isinstance(exact, (int, float)):
                module._buffers[key] = torch.full_like(table, exact, dtype=torch.float32)  # Gemma 3: √width
            elif table is not None and table.dtype == dtype:
                what = f"{type(module).__name__} computes a table in the dtype of the weights, which rounds it"
                where = f"{path}, {name}.{key}"
                raise ModelError(what, got=str(dtype), where=where, fix="set base.weights_dtype: float32")


def processor(loader: Any, config: BaseSettings, **options: Any) -> Any:
    """Load a tokenizer or image processor through ``loader.from_pretrained``."""
    path = location(config)
    with _loading(config, path):
        return loader.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code is True, **options
        )


def refuse_other_tokens(tokenizer: Any, model: Any, where: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Raises:
        ModelError: the message has both numbers.
    """
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):  # CANINE has no table of tokens
        return
    if len(tokenizer) > rows:
        fix = "use the tokenizer of the base, or resize the model's embeddings"
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens, and the model {rows}", where=where, fix=fix)


@contextlib.contextmanager
def _loading(config: BaseSettings, path: str) -> Iterator[None]:
    """Silence transformers, and turn its failures to find or read a file into `ModelError`."""
    folder = Path(path)
    if (folder.is_absolute() or path.startswith((".", "~"))) and not folder.is_dir():
        raise FileError("the model's folder is not found", where=path, fix="check base.model")
    _refuse_by_content(folder)
    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        if contents_of(folder) == "nothing" and (described := missing(folder)) is not None:
            raise described from cause
        detail = " ".join(str(cause).split())[:300]
        absent = "" if folder.exists() else f"there is no folder {path} here, and "
        raise ModelError(
            f"{absent}the model cannot be loaded{' from the Hub' if absent else ''} ({detail})",
            where=path,
            fix=f"check base.model and base.revision, and that it fits the family {config.family}",
        ) from cause
    except Exception as cause:
        if type(cause).__name__ != "SafetensorError":
            raise
        fix = "the file is truncated or corrupt: copy it again"
        raise FileError(f"the weights are not readable ({cause})", where=path, fix=fix) from cause


def _refuse_by_content(folder: Path) -> None:
    """Refuse a folder from which transformers would load something other than the weights of a base model."""
    held = contents_of(folder)
    if held == "both":  # the model would get the adapter beside it
        raise ambiguous(folder)
    if held == "adapter":
        raise FileError("an adapter where a base model is needed", where=folder, fix="give the base of the adapter")
    if held == "checkpoint" and weights_of(folder) is None:
        fix = "if you trust it, load it with transformers, and save it again with model.save_pretrained(folder)"
        raise FileError("the checkpoint has only pickled weights, which are refused", where=folder, fix=fix)
    if (folder / CONFIG).is_file() and (how := quantization_of(read_json(folder / CONFIG), {})) is not None:
        raise refused_quantized(how, folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars: its warnings about unused weights are expected here."""
    from transformers.utils import logging  # deferred: it takes seconds to import

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
