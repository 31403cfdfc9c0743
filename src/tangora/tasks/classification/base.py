"""Load a backbone for heads, with the head that its checkpoint has.

With ``layers: model``, the backbone is the one inside transformers' class for the task: BERT's has its pooler for the
classification of rows, and not for that of words; RoBERTa's never has. A checkpoint saved by this class also has a head
(``ClassifierBase.given``), which a task can begin with. With ``layers: linear``, the backbone is that of ``AutoModel``,
without a pooler unless it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.errors import DataError, ModelError
from tangora.tasks.base import Base, pretrained, processor, refuse_other_tokens, take_out
from tangora.tasks.classification.heads import Reads, linear_head, new_values_, own_head, reads_of, width_of
from tangora.tasks.values import fingerprint_of

if TYPE_CHECKING:
    from tangora.tasks.classification.heads import Head
    from tangora.tasks.classification.settings import ClassifierSettings, HeadSettings

__all__ = ["ClassifierBase", "classifier_base", "decides", "of_base", "start_", "tokenizer_of"]

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Family -> the class of transformers for its task."""

_PREFIXED = ("roberta", "camembert", "deberta", "mpnet", "xlm-roberta")
"""Kinds of models whose tokenizers mark the space before a word."""


@dataclass(kw_only=True, repr=False)
class ClassifierBase(Base):
    """A base whose tasks have heads.

    Attributes:
        reads: what the heads are applied to.
        given: parameters of the checkpoint's own head, by their names; empty if it has none.
        names: the checkpoint's class names in order; empty if it does not name them.
    """

    reads: Reads
    given: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def head(self, outputs: int) -> Head:
        """Return a head without values.

        Args:
            outputs: number of logits.
        """
        config: Any = self.backbone.config
        settings = cast("HeadSettings", self.config)
        if settings.layers == "model":
            return own_head(settings.family, config, outputs)
        return linear_head(width_of(config, self.reads), outputs)


def classifier_base(config: HeadSettings, preprocessor: Any) -> ClassifierBase:
    """Load the backbone and the checkpoint's head.

    Args:
        config: the base's settings.
        preprocessor: tokenizer or image processor.

    Raises:
        ModelError: the checkpoint cannot be loaded, or the layers of its head are not known.
    """
    import transformers  # deferred: it takes a second to import

    if config.layers == "linear":
        pooling: Reads = getattr(config, "pooling", None) or "tokens"
        unused = () if pooling == "pooler" else ("pooler",)
        backbone = pretrained(transformers.AutoModel, config, unused=unused)
        _refuse_decoder(backbone, config)
        if any(True for _ in getattr(backbone, "pooler", nn.Module()).parameters()):  # else it only averages
            take_out(backbone, unused)
        _refuse_other_tokens(preprocessor, backbone, config)
        return ClassifierBase(config, backbone, preprocessor, reads=pooling)
    kind: Any = processor(transformers.AutoConfig, config)
    reads = reads_of(config.family, str(kind.model_type))
    loader = _Loader(getattr(transformers, _CLASSES[config.family]))
    fix = "use a checkpoint of this class, or set layers: linear, with pooling: cls or mean if it has no pooler"
    backbone = pretrained(loader, config, fix=fix)
    _refuse_other_tokens(preprocessor, backbone, config)
    return ClassifierBase(config, backbone, preprocessor, reads=reads, given=loader.head, names=loader.names)


@dataclass
class _Loader:
    """``from_pretrained`` of a class with a head, which returns the backbone and keeps the head."""

    auto: Any
    head: dict[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def from_pretrained(self, path: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        with torch.random.fork_rng(devices=()):  # the values of a missing head are drawn
            model, info = self.auto.from_pretrained(path, **options)
        prefix = f"{model.base_model_prefix}."
        mismatched = {one[0] for one in info.get("mismatched_keys") or ()}
        absent = {*info["missing_keys"], *mismatched}
        if type(model).__name__ in (model.config.architectures or ()):
            state = model.state_dict()
            self.head = {n: t.float() for n, t in state.items() if not n.startswith(prefix) and n not in absent}
            self.names = _names(model.config.id2label or {})
        of_backbone = [name.removeprefix(prefix) for name in absent if name.startswith(prefix)]
        return getattr(model, model.base_model_prefix), {"missing_keys": of_backbone}


def _names(by_number: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return class names in order; none if they are the ones that transformers makes up."""
    names = tuple(str(by_number[key]) for key in sorted(by_number, key=int))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _refuse_decoder(backbone: Any, config: HeadSettings) -> None:
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ModelError(f"{config.family} needs an encoder", got=type(backbone).__name__, where=config.model)


def _refuse_other_tokens(preprocessor: Any, backbone: nn.Module, config: HeadSettings) -> None:
    if hasattr(preprocessor, "get_vocab"):  # a processor of images has none
        refuse_other_tokens(preprocessor, backbone, config.model)


def tokenizer_of(config: HeadSettings, *, words: bool = False) -> Any:
    """Load the tokenizer, which truncates to the model's maximum length.

    Args:
        config: the base's settings.
        words: whether rows are lists of words.
    """
    from transformers import AutoConfig, AutoTokenizer  # deferred: it takes a second to import

    model: Any = processor(AutoConfig, config)
    options = {"add_prefix_space": True} if words and model.model_type in _PREFIXED else {}
    tokenizer = processor(AutoTokenizer, config, **options)
    if (positions := getattr(model, "max_position_embeddings", None)) is not None:
        # RoBERTa and its kin count positions from behind that of the padding
        first = model.pad_token_id + 1 if model.model_type in ("roberta", "camembert", "xlm-roberta", "mpnet") else 0
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - first)
    return tokenizer


def of_base(base: Base) -> ClassifierBase:
    """Return the base as a `ClassifierBase`.

    Raises:
        ModelError: it was loaded by a family without heads.
    """
    if not isinstance(base, ClassifierBase):
        fix = "load the base with the task's family"
        raise ModelError("the base has no heads", got=base.config.family, where="base.family", fix=fix)
    return base


def decides(config: ClassifierSettings, base: ClassifierBase) -> dict[str, Any]:
    """Return what affects the answers of a head, besides rows and class names."""
    settings = cast("HeadSettings", base.config)
    given = fingerprint_of(base.given) if config.head == "checkpoint" else None
    return {"layers": settings.layers, "reads": base.reads, "head": given}


def start_(readout: nn.Module, last: str, config: ClassifierSettings, base: ClassifierBase, labels: list[str]) -> None:
    """Set the first values of a readout's head: new ones, or those of the checkpoint.

    Args:
        readout: with the modules of the head.
        last: the layer that gives the logits.
        config: of the task.
        base: with the checkpoint's head.
        labels: the task's class names; empty for a regression.

    Raises:
        ModelError: the checkpoint has no head.
        DataError: the checkpoint's head has other classes.
    """
    if config.head == "new":
        return new_values_(readout, last, base.backbone.config)
    state, where = readout.state_dict(), f"task {config.name}, head"
    if missing := sorted(state.keys() - base.given.keys()):
        what = f"the checkpoint has no head for this task (it lacks {missing[0]})"
        fix = "set head: new, or give a checkpoint saved by transformers' class for the task, and base.layers: model"
        raise ModelError(what, got=base.config.model, where=where, fix=fix)
    for name, value in state.items():
        if value.shape != base.given[name].shape:
            what = f"the checkpoint's head has {len(base.given[name])} outputs, the task {len(value)}"
            raise DataError(what, got=list(base.names) or None, where=where, fix="set head: new, or name its classes")
    if base.names and labels and [name.casefold() for name in labels] != [name.casefold() for name in base.names]:
        what = "the checkpoint's head was trained for other classes, or in another order"
        fix = f"name them in its order, or map values to them: labels: [{', '.join(base.names)}]"
        raise DataError(what, got=labels, where=f"task {config.name}, labels", fix=fix)
    readout.load_state_dict({name: base.given[name] for name in state})
