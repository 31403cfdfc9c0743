"""The keys of a task's ``source``: where its rows are. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tangora.config.frozen import Frozen
from tangora.config.places import PathText
from tangora.support.validation import refuse

__all__ = ["SOURCE_KINDS", "Source", "SplitName"]

SplitName = Literal["train", "validation", "test"]

Files = dict[SplitName, PathText] | PathText
"""Split -> file or folder; or one, from which splits are cut."""


class Source(Frozen):
    """The source of a task's rows: exactly one of `SOURCE_KINDS`."""

    hub: str | None = Field(default=None, description="data set id on the Hugging Face Hub")
    parquet: Files | None = Field(default=None, description="split -> file; or one file, from which splits are cut")
    csv: Files | None = Field(default=None, description="split -> file; or one file, from which splits are cut")
    jsonl: Files | None = Field(default=None, description="split -> file; or one file, from which splits are cut")
    imagefolder: Files | None = Field(
        default=None, description="split -> folder with one folder a class; or one such folder, which is cut"
    )
    npz: Files | None = Field(
        default=None, description="split -> .npz with arrays of images and labels; or one, from which splits are cut"
    )
    sep: str | None = Field(
        default=None, min_length=1, max_length=1, description="csv: between columns, such as ';' or a tab; default: ','"
    )
    encoding: str | None = Field(default=None, description="csv, jsonl: of the text, such as latin-1; default: utf-8")
    builtin: str | None = Field(default=None, description="a data set of tangora.quickstart")
    lm_eval: str | None = Field(default=None, description="causal-lm: a task of the lm-evaluation-harness")
    include: PathText | None = Field(
        default=None, description="lm_eval: a folder with tasks of your own, as YAML files"
    )
    shots: int | None = Field(
        default=None, ge=0, description="lm_eval: examples in each prompt; default: the number that the task sets"
    )
    config: str | None = Field(default=None, description="hub: configuration (subset) name")
    revision: str | None = Field(default=None, description="hub: commit or tag")
    splits: dict[SplitName, str] = Field(
        default_factory=dict, description="hub: our split -> theirs, slices such as 'train[:1000]' allowed"
    )

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, name: str | None) -> str | None:
        try:
            return name if name is None else codecs.lookup(name).name
        except LookupError:
            raise ValueError("no such encoding of text: give one of Python's, such as utf-8, latin-1, cp1252") from None

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong with several keys together."""
        given = [k for k in SOURCE_KINDS if getattr(self, k) is not None]
        if self.lm_eval is None and (self.include is not None or self.shots is not None):
            yield "include and shots are of lm_eval"
        if self.sep is not None and self.csv is None:
            yield "sep is of csv"
        if self.encoding is not None and self.csv is None and self.jsonl is None:
            yield "encoding is of csv and jsonl"
        if len(given) != 1:
            yield f"give exactly one of {', '.join(SOURCE_KINDS)}; got {', '.join(given) or 'none'}"
            return
        files = getattr(self, given[0])
        if isinstance(files, dict) and not {"train", "test"} <= files.keys():
            fix = f"Give two files, {given[0]}: {{train: ..., test: ...}}; or one, {given[0]}: ..., to be cut"
            yield f"{given[0]} needs a train and a test split; got {', '.join(files) or 'none'}. {fix}"

    @property
    def single(self) -> str | None:
        """The one file or folder from which splits are cut, if there is one."""
        files = getattr(self, self.kind)
        return files if isinstance(files, str) and self.kind in _FILES else None

    @property
    def kind(self) -> str:
        """Which of `SOURCE_KINDS` is given."""
        return next(k for k in SOURCE_KINDS if getattr(self, k) is not None)


_FILES = ("parquet", "csv", "jsonl", "imagefolder", "npz")
SOURCE_KINDS = ("hub", "parquet", "csv", "jsonl", "imagefolder", "npz", "builtin", "lm_eval")
