"""The content of ``tangora.json`` beside an adapter: where it comes from, where it started, how it scored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tangora.adapters.kinds import KINDS, Kind
from tangora.errors import AdapterError, FileError
from tangora.support.files import inside, read_json
from tangora.support.validation import validate
from tangora.support.version import package_version

__all__ = [
    "FORMAT",
    "BaseInfo",
    "DistilledInfo",
    "FusedInfo",
    "InitialInfo",
    "Metadata",
    "Parent",
    "declared_kind",
    "read_metadata",
]

FORMAT = 1
FILE = "tangora.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BaseInfo(_Frozen):
    """The base model that the updates belong to; ``fingerprint`` is of its weights."""

    model: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    family: str | None = None


class InitialInfo(_Frozen):
    """How to draw φ₀ again, and its fingerprint; ``init`` is peft's ``init_lora_weights``."""

    seed: int
    a_init: Literal["shared", "per_task"] = "shared"
    init: bool | str = True
    fingerprint: str | None = None


class Parent(_Frozen):
    """One of the adapters that were fused."""

    name: str
    task: str | None = None
    fingerprint: str


class FusedInfo(_Frozen):
    """How a fused adapter was made: enough to make it again from its parents, without data.

    ``weights`` are one per parent, or per site and parent. ``truncation_error`` is the relative Frobenius error of
    the cut to ``rank``, over all sites and for each. ``selection`` says who chose the weights, and on which split;
    ``statistics`` are those that the method was given, one per parent: of which task, split and rows; ``heads`` says
    what became of what was saved whole.
    """

    method: str
    space: str
    parents: list[Parent]
    weights: list[float] | dict[str, list[float]]
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    rank: int | None = None
    truncation_error: float | None = None
    site_errors: dict[str, float] | None = None
    selection: dict[str, Any] | None = None
    statistics: list[dict[str, Any]] | None = None
    heads: Literal["keep", "fuse"] | None = None


class DistilledInfo(_Frozen):
    """What a student followed on unlabelled rows: the fingerprint of its tangent teacher, or of each task's."""

    teacher: str | dict[str, str]
    tasks: list[str]
    split: str
    rows: int


class Metadata(_Frozen):
    """An adapter's provenance, format 1; every field but the first three may be unknown.

    ``train`` is the registered mode that trained it (`tangora.modes.contract.Mode`). Files of earlier versions do not
    have it: there it follows from ``kind`` and ``linearize``.

    >>> Metadata(task="digits", base=BaseInfo(model="vit")).base.model
    'vit'
    """

    format: int = FORMAT
    tangora: str = Field(default_factory=package_version, description="the version that wrote it")
    kind: Literal["lora", "full"] = "lora"
    mode: str | None = Field(default=None, description="the recipe's name for how it was trained")
    train: str = Field(default="lora", description="the registered mode that trained it")
    task: str | None = None
    joint: list[str] | None = Field(default=None, description="the tasks that it was trained on together")
    base: BaseInfo = BaseInfo()
    linearize: Literal["none", "module", "model"] = "none"
    initial: InitialInfo | None = None
    seed: int | None = None
    stage: str | None = Field(default=None, description="hash of everything that decided it")
    recipe: dict[str, Any] | None = Field(default=None, description="the configuration that trained it")
    fused: FusedInfo | None = None
    distilled: DistilledInfo | None = None
    scores: dict[str, Any] | None = None
    verified: dict[str, Any] | None = Field(default=None, description="what stock peft computes from the files")

    @model_validator(mode="before")
    @classmethod
    def _mode_of_earlier_versions(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "train" in given:
            return given
        linearize = given.get("linearize", "none")
        if given.get("kind") == "full":
            return {**given, "train": "full-tangent" if linearize == "model" else "full"}
        return {**given, "train": {"module": "l-lora", "model": "tangent"}.get(str(linearize), "lora")}

    def __repr__(self) -> str:
        named = {"mode": self.mode, "task": self.task, "base": self.base.model, "stage": self.stage and self.stage[:12]}
        said = [f"{name}={value!r}" for name, value in named.items() if value is not None]
        parts = [name for name in ("fused", "distilled", "scores", "verified") if getattr(self, name) is not None]
        return f"Metadata({', '.join([f'kind={self.kind!r}', *said, *parts])})"

    @property
    def of_kind(self) -> Kind:
        """The kind as a value."""
        return KINDS[self.kind]

    @property
    def linear_in_factors(self) -> bool:
        """Whether the adapter was trained where the network, or each layer, is linear in φ: factors then add up."""
        return self.linearize != "none"

    @property
    def expanded(self) -> bool:
        """Whether it was trained, and answers, as the whole network's expansion: not as what stock peft computes."""
        return self.linearize == "model"


def declared_kind(path: Path) -> str | None:
    """Return the kind that ``tangora.json`` in a folder says; None if there is none, or it cannot be read."""
    with contextlib.suppress(FileError):
        kind = read_json(inside(path, FILE)).get("kind", "lora")
        return kind if isinstance(kind, str) else None
    return None


def read_metadata(folder: Path) -> Metadata | None:
    """The metadata in ``folder``; None when it has no ``tangora.json``.

    Raises:
        FileError: the file is unreadable.
        AdapterError: it is wrong, or of a newer format.
    """
    path = folder / FILE
    if not path.exists():
        return None
    raw = read_json(inside(folder, FILE))
    _check_format(raw, path)
    return validate(Metadata, raw, str(path), AdapterError)


def _check_format(raw: Mapping[str, Any], path: Path) -> None:
    found = raw.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise AdapterError("the format must be a whole number", got=found, where=path, fix="write the adapter again")
    if found > FORMAT:
        raise AdapterError(f"this version reads format {FORMAT}", got=found, where=path, fix="update tangora")
