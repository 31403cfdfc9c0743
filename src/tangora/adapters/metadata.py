"""The content of ``tangora.json`` beside an adapter: its provenance, its start and its scores."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tangora.adapters.extracted import ExtractedInfo
from tangora.adapters.kinds import KINDS, Kind, KindName
from tangora.errors import AdapterError, FileError
from tangora.support.files import inside, read_json
from tangora.support.validation import validate
from tangora.support.version import package_version

__all__ = [
    "ABOUT",
    "FILE",
    "FORMAT",
    "BaseInfo",
    "DistilledInfo",
    "ExtractedInfo",
    "FusedInfo",
    "GatesInfo",
    "InitialInfo",
    "Metadata",
    "Parent",
    "PolishedInfo",
    "declared_kind",
    "read_metadata",
]

FORMAT = 1
FILE = "tangora.json"
ABOUT = "tangora"
"""The key of the same content in the metadata of a single file."""
_MADE = ("fused", "distilled", "polished", "extracted", "scores", "verified")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BaseInfo(_Frozen):
    """The base model that the updates belong to.

    ``fingerprint`` is of its weights, and ``weights`` the form in which they were held: ``float32``, ``bfloat16``, ...
    ``adapted`` is the digest of the weights of adapted layers, if the updates depend on these.
    """

    model: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    family: str | None = None
    weights: str | None = None
    adapted: str | None = None


class InitialInfo(_Frozen):
    """How to draw φ₀ again, and its fingerprint; ``init`` is peft's ``init_lora_weights``."""

    seed: int
    a_init: Literal["shared", "per_task"] = "shared"
    init: bool | str = True
    fingerprint: str | None = None


class Parent(_Frozen):
    """One of the adapters that were fused; ``source`` is ``org/name@commit`` if it was read from the Hub."""

    name: str
    task: str | None = None
    fingerprint: str
    source: str | None = None


class UsedStatistics(_Frozen):
    """The statistics of one parent that a method used, and their fingerprint."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    task: str
    split: str
    rows: int
    kind: str
    fingerprint: str


class FusedInfo(_Frozen):
    """How a fused adapter was made: enough to make it again from its parents, without data.

    ``weights`` has one number per parent, or per site and parent. ``truncation_error`` is the relative Frobenius error
    of the truncation to ``rank`` over all sites, ``site_errors`` that of each; with ``error_bound``, each site has the
    least rank under that bound, and ``rank`` is the largest. ``selection`` records how the weights
    were chosen, and on which split; ``statistics`` the statistics that the method used, one entry per parent, with
    task, split and rows; ``heads`` how the parameters saved whole were treated.
    """

    method: str
    space: str
    parents: list[Parent]
    weights: list[float] | dict[str, list[float]]
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    rank: int | None = None
    error_bound: float | None = None
    truncation_error: float | None = None
    site_errors: dict[str, float] | None = None
    selection: dict[str, Any] | None = None
    statistics: list[UsedStatistics] | None = None
    heads: Literal["keep", "fuse"] | None = None

    @model_validator(mode="after")
    def _one_weight_per_parent(self) -> FusedInfo:
        rows = self.weights.values() if isinstance(self.weights, dict) else [self.weights]
        if any(len(row) != len(self.parents) for row in rows):
            raise ValueError(f"weights must have one number for each of the {len(self.parents)} parents")
        return self


class DistilledInfo(_Frozen):
    """What a student was distilled from: the fingerprint of its tangent teacher, or of each task's, and the rows."""

    teacher: str | dict[str, str]
    tasks: list[str]
    split: str
    rows: int


class PolishedInfo(_Frozen):
    """How a fused adapter was trained towards its experts' answers on rows without labels.

    ``start`` is the fingerprint of the adapter that it started from, or ``random``; ``start_error`` the relative
    error of its truncation; ``left_out`` lists parameters that LoRA cannot hold. ``experts`` maps tasks to
    fingerprints, ``rows`` tasks to numbers of rows of ``split``, and ``recombined`` tasks to numbers of rows that were
    made of parts of these. ``before`` and ``after`` contain the mean divergence from each task's expert, in nats, on
    ``measured_on`` rows; with labels (``settings``), its weighted mean with their cross-entropy. ``step`` is the step
    with the weights that were kept, ``mass`` the mean probability of the tokens that were kept of a vocabulary, and
    ``cut_error`` the relative error, of outputs, of a result that was cut to the rank.
    """

    start: str
    start_error: float
    left_out: list[str] | None = None
    experts: dict[str, str]
    split: str
    rows: dict[str, int]
    recombined: dict[str, int]
    measured_on: Literal["held-out", "the same"]
    before: dict[str, float]
    after: dict[str, float]
    step: int
    mass: float | None = None
    cut_error: float | None = None
    seed: int
    settings: dict[str, Any]

    @model_validator(mode="after")
    def _the_same_tasks(self) -> PolishedInfo:
        tables = (self.rows, self.recombined, self.before, self.after)
        if not self.experts or any(table.keys() != self.experts.keys() for table in tables):
            raise ValueError("experts, rows, recombined, before and after must have the same tasks, at least one")
        return self


class GatesInfo(_Frozen):
    """The trained gate of each layer; the adapter does not change the ``closed`` ones, below the threshold."""

    threshold: float
    values: dict[str, float]
    closed: list[str]


class Metadata(_Frozen):
    """An adapter's provenance, format 1; every field but the first three may be unknown.

    ``train`` is the registered mode that trained it (`tangora.modes.contract.Mode`). It is missing in files of earlier
    versions, and then follows from ``kind`` and ``linearize``.

    >>> Metadata(task="digits", base=BaseInfo(model="vit")).base.model
    'vit'
    """

    format: int = FORMAT
    tangora: str = Field(default_factory=package_version, description="the version that wrote it")
    kind: KindName = "lora"
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
    modules: dict[str, Any] | None = Field(default=None, description="what the mode makes the added modules of")
    gates: GatesInfo | None = Field(default=None, description="the gates that it was trained with")
    fused: FusedInfo | None = None
    distilled: DistilledInfo | None = None
    polished: PolishedInfo | None = None
    extracted: ExtractedInfo | None = None
    scores: dict[str, Any] | None = None
    verified: dict[str, Any] | None = Field(default=None, description="what stock peft computes from the files")

    @field_validator("recipe")
    @classmethod
    def _tables(cls, recipe: dict[str, Any] | None) -> dict[str, Any] | None:
        for key in ("training", "lora"):
            if recipe is not None and not isinstance(recipe.get(key) or {}, Mapping):
                raise ValueError(f"{key} must be a table")
        return recipe

    @field_validator("scores")
    @classmethod
    def _numbers(cls, scores: dict[str, Any] | None) -> dict[str, Any] | None:
        tables = [(scores or {}).get(name) or {} for name in ("tasks", "as_weights")]
        for name, table in zip(("tasks", "as_weights"), tables, strict=True):
            if not isinstance(table, Mapping) or not all(isinstance(value, (int, float)) for value in table.values()):
                raise ValueError(f"{name} must be a table of numbers")
        if not tables[1].keys() <= tables[0].keys():
            raise ValueError("as_weights must have scores of tasks only")
        return scores

    @model_validator(mode="before")
    @classmethod
    def _mode_of_earlier_versions(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "train" in raw:
            return raw
        linearize = raw.get("linearize", "none")
        if raw.get("kind") == "full":
            return {**raw, "train": "full-tangent" if linearize == "model" else "full"}
        return {**raw, "train": {"module": "l-lora", "model": "tangent"}.get(str(linearize), "lora")}

    def __repr__(self) -> str:
        fields = {
            "kind": self.kind,
            "mode": self.mode,
            "task": self.task,
            "base": self.base.model,
            "stage": self.stage and self.stage[:12],
        }
        values = [f"{name}={value!r}" for name, value in fields.items() if value is not None]
        parts = [name for name in _MADE if getattr(self, name) is not None]
        return f"Metadata({', '.join([*values, *parts])})"

    @property
    def of_kind(self) -> Kind:
        """The properties of the kind."""
        return KINDS[self.kind]

    @property
    def linear_in_factors(self) -> bool:
        """Whether the network, or each layer, was linear in φ in training, so that factors add up."""
        return self.linearize != "none"

    @property
    def expanded(self) -> bool:
        """Whether it was trained in, and predicts with, the expansion of the whole network, unlike in stock peft."""
        return self.linearize == "model"


def declared_kind(path: Path) -> str | None:
    """Return the kind in a folder's ``tangora.json``; None if there is no such file, or it cannot be read."""
    with contextlib.suppress(FileError):
        kind = read_json(inside(path, FILE)).get("kind", "lora")
        return kind if isinstance(kind, str) else None
    return None


def read_metadata(folder: Path) -> Metadata | None:
    """Read the metadata in ``folder``; None if it has no ``tangora.json``.

    Raises:
        FileError: the file is unreadable.
        AdapterError: its content is invalid, or of a newer format.
    """
    path = folder / FILE
    if not path.exists():
        return None
    raw = read_json(inside(folder, FILE))
    raw.pop("files", None)  # of the folder, not of the adapter
    _check_format(raw, path)
    return validate(Metadata, raw, str(path), AdapterError)


def _check_format(raw: Mapping[str, Any], path: Path) -> None:
    version = raw.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise AdapterError("the format must be a whole number", got=version, where=path, fix="write the adapter again")
    if version > FORMAT:
        raise AdapterError(f"this version reads format {FORMAT}", got=version, where=path, fix="update tangora")
