"""Describe a file that no format recognizes better than by what it is not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tangora.adapters.layouts.keys import sort_names
from tangora.adapters.layouts.lookup import FAMILIES, family_of
from tangora.errors import AdapterError
from tangora.storage.header import read_header
from tangora.storage.recognition import refused_pickle

__all__ = ["error_of_file"]

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
_EMBEDDINGS = {"emb_params", "string_to_param", "clip_l", "clip_g", "t5xxl", "*", "<concept>"}
_OF_CHECKPOINTS = (
    *("model.", "first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "double_blocks.", "single_blocks."),
    *("input_blocks.", "down_blocks.", "transformer_blocks.", "encoder.", "decoder.", "text_model."),
)


def error_of_file(path: Path) -> AdapterError | None:
    """Return the error that describes a file without an adapter; None if nothing is known about it.

    Raises:
        FileError: it is a damaged safetensors file.
    """
    if path.suffix in _PICKLES:
        error = refused_pickle(path, AdapterError)
        assert isinstance(error, AdapterError)
        return error
    if path.suffix != ".safetensors":
        return None
    header = read_header(path)
    modules, is_adapter = sort_names(header)
    if is_adapter:
        return _of_names(modules, path)
    if header.keys() & _EMBEDDINGS and len(header) <= len(_EMBEDDINGS):
        fix = "load it beside the adapter; vectors of new words are not fused"
        return AdapterError("an embedding of textual inversion where an adapter is needed", where=path, fix=fix)
    if any(name.startswith(_OF_CHECKPOINTS) for name in header):
        fix = "give adapters: a LoRA, LoHa or LoKr"
        what = "a full checkpoint, or a part of one, where an adapter is needed"
        return AdapterError(what, got=min(header), where=path, fix=fix)
    return None


def _of_names(modules: Collection[str], path: Path) -> AdapterError:
    """Return the error for an adapter whose modules no format names all."""
    examples: dict[str, str] = {}
    for module in sorted(modules):
        examples.setdefault(family_of([module]) or "unknown", module)
    got = ", ".join(f"{module} ({family})" for family, module in examples.items())
    if len(examples) > 1:
        what = "an adapter with the names of several formats in one file"
        return AdapterError(what, got=got, where=path, fix="copy it again, or keep the tensors of one format")
    fix = f"the names must be as in {', '.join(FAMILIES)}; or give the folder with adapter_config.json"
    return AdapterError("an adapter with module names of no known format", got=got, where=path, fix=fix)
