"""Extras: packages that only a part of Tangora imports, and the error if they are not installed.

``pip install tangora`` installs what is needed to fuse, verify and inspect adapters and checkpoints. Training, figures,
and reading text and images need an extra each; ``tangora[all]`` has everything a recipe may need.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from tangora.errors import MissingExtraError

__all__ = ["EXTRAS", "require"]

EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("accelerate", "datasets", "pyarrow", "sklearn", "transformers"),
        "report": ("jinja2", "markupsafe", "matplotlib"),
        "text": ("sentencepiece",),
        "lm": ("sacrebleu",),
        "vision": ("PIL",),
        "quantized": ("bitsandbytes",),
        "gguf": ("gguf",),
        "fast": ("numba",),
        "search": ("cmaes",),
        "quickstart": ("PIL", "platformdirs", "skimage", "sklearn", "tokenizers", "transformers"),
        "tensorboard": ("tensorboard",),
        "wandb": ("wandb",),
        "ray": ("ray",),
    }
)
"""Extra -> those of its packages that Tangora imports, by import name."""


def require(*extras: str, purpose: str) -> None:
    """Raise if packages of some extras are missing; call it before importing them.

    Nothing is imported here, so that a run can check at its beginning what it needs at its end.

    Args:
        extras: keys of `EXTRAS`.
        purpose: what needs them, as the message should name it: ``"a report"``.

    Raises:
        MissingExtraError: a package is not installed; the message contains the command that installs all of them.

    >>> require("train", purpose="training")
    """
    missing = {extra: [name for name in EXTRAS[extra] if not _is_installed(name)] for extra in extras}
    lacking = [extra for extra, names in missing.items() if names]
    if lacking:
        names = ", ".join(dict.fromkeys(name for extra in lacking for name in missing[extra]))
        fix = f"run: pip install 'tangora[{','.join(lacking)}]'"
        raise MissingExtraError(f"{purpose} needs packages that are not installed", got=names, fix=fix)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or half-initialized
        return False
