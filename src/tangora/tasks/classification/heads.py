"""Heads: the layers between a backbone and logits, as transformers' class for a task has them, name by name.

A head is built here, not taken from transformers, so that it has its own number of classes, whatever the checkpoint
has, and needs no second backbone. `tests/tasks/test_heads.py` compares every architecture below with its class.

    bert, albert                            pooler output ─▶ dropout ─▶ classifier
    roberta, camembert, xlm-roberta, mpnet  first token ─▶ classifier: dropout, dense, tanh, dropout, out_proj
    electra                                 the same with GELU
    distilbert                              first token ─▶ pre_classifier ─▶ ReLU ─▶ dropout ─▶ classifier
    deberta, deberta-v2                     first token ─▶ pooler: dropout, dense, activation ─▶ dropout ─▶ classifier
    vit, deit                               first token ─▶ classifier
    convnext, convnextv2, swin              pooler output ─▶ classifier
    resnet                                  pooler output ─▶ classifier: flatten, linear
    dinov2                                  first token, mean of the others ─▶ classifier
    words, any of the encoders of text      every token ─▶ dropout ─▶ classifier
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from tangora.adapters.initial import seed_of
from tangora.errors import ModelError
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from tangora.tasks.values import Batch

__all__ = ["Head", "Reads", "linear_head", "new_values_", "own_head", "read", "reads_of", "width_of"]

Reads = Literal["pooler", "cls", "mean", "cls+mean", "tokens"]
"""What a head is applied to: the pooler's output, the first token, the mean over tokens or positions, the first token
beside the mean of the others, or every token."""

_RANGE = 0.02  # of new values, if the model's configuration has none


@dataclass(frozen=True)
class Head:
    """The layers of a head.

    Attributes:
        modules: name -> module; those with parameters have the names of the class of transformers.
        steps: what is applied, in this order: names of modules, or functions.
        last: the name of the layer that gives the logits.
    """

    modules: Mapping[str, nn.Module]
    steps: tuple[str | Callable[[Tensor], Tensor], ...]
    last: str = "classifier"


def read(output: Any, inputs: Batch, reads: Reads) -> Tensor:
    """Return what a head is applied to, one vector per row, or per token.

    Args:
        output: of the backbone.
        inputs: of the backbone: a mask of the tokens, if they are texts.
        reads: what of the output.
    """
    if reads == "pooler":
        pooled: Tensor = output.pooler_output
        return pooled.flatten(1)
    hidden: Tensor = output.last_hidden_state
    if reads == "tokens":
        return hidden
    if hidden.ndim > 3 and reads != "mean":
        what, fix = "the output of a convolutional network has no first token", "set pooling: pooler or mean"
        raise ModelError(what, got=list(hidden.shape), where="base.pooling", fix=fix)
    if reads == "cls":
        return hidden[:, 0]
    if reads == "cls+mean":
        return torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1)
    if hidden.ndim > 3:  # of a convolutional network: [batch, channels, height, width]
        return hidden.flatten(2).mean(2)
    if "attention_mask" not in inputs:
        return hidden.mean(1)
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


class _Dense(nn.Module):
    """Dropout, dense, activation, dropout, projection: the head of RoBERTa and its kin."""

    def __init__(self, width: int, outputs: int, dropout: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.out_proj = _linear(width, width), _linear(width, outputs)
        self.dropout, self.activation = nn.Dropout(dropout), activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.dense(self.dropout(x)))
        logits: Tensor = self.out_proj(self.dropout(x))
        return logits


class _Pooler(nn.Module):
    """Dropout, dense, activation: the pooler of DeBERTa, which belongs to its head."""

    def __init__(self, width: int, dropout: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.dropout, self.activation = _linear(width, width), nn.Dropout(dropout), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(self.dropout(x)))


def _pooled(config: Any, outputs: int) -> Head:
    return _dropped(config, outputs, _dropout(config))


def _albert(config: Any, outputs: int) -> Head:
    return _dropped(config, outputs, config.classifier_dropout_prob)


def _roberta(config: Any, outputs: int) -> Head:
    dense = _Dense(config.hidden_size, outputs, _dropout(config), torch.tanh)
    return Head({"classifier": dense}, ("classifier",), "classifier.out_proj")


def _electra(config: Any, outputs: int) -> Head:
    dense = _Dense(config.hidden_size, outputs, _dropout(config), nn.functional.gelu)
    return Head({"classifier": dense}, ("classifier",), "classifier.out_proj")


def _distilbert(config: Any, outputs: int) -> Head:
    dropout = nn.Dropout(config.seq_classif_dropout)
    modules = {"pre_classifier": _linear(config.dim, config.dim), "classifier": _linear(config.dim, outputs)}
    return Head({**modules, "dropout": dropout}, ("pre_classifier", nn.functional.relu, "dropout", "classifier"))


def _deberta(config: Any, outputs: int) -> Head:
    from transformers.activations import ACT2FN  # deferred: it takes a second to import

    width, dropout = config.pooler_hidden_size, getattr(config, "cls_dropout", None)
    pooler = _Pooler(width, config.pooler_dropout, ACT2FN[config.pooler_hidden_act])
    dropped = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
    modules = {"pooler": pooler, "dropout": dropped, "classifier": _linear(config.hidden_size, outputs)}
    return Head(modules, ("pooler", "dropout", "classifier"))


def _dropped(config: Any, outputs: int, dropout: float) -> Head:
    modules = {"dropout": nn.Dropout(dropout), "classifier": _linear(config.hidden_size, outputs)}
    return Head(modules, ("dropout", "classifier"))


def _plain(config: Any, outputs: int) -> Head:
    return linear_head(width_of(config, "cls"), outputs)


def _double(config: Any, outputs: int) -> Head:
    return linear_head(2 * config.hidden_size, outputs)


def _flattened(config: Any, outputs: int) -> Head:
    layers = nn.Sequential(nn.Flatten(), _linear(width_of(config, "cls"), outputs))
    return Head({"classifier": layers}, ("classifier",), "classifier.1")


def _words(config: Any, outputs: int) -> Head:
    return _dropped(config, outputs, _dropout(config))


def _words_of_distilbert(config: Any, outputs: int) -> Head:
    return _dropped(config, outputs, config.dropout)


def _words_of_albert(config: Any, outputs: int) -> Head:
    given = config.classifier_dropout_prob
    return _dropped(config, outputs, config.hidden_dropout_prob if given is None else given)


_Table = Mapping[str, tuple[Reads, Callable[[Any, int], Head]]]

TEXTS: _Table = {
    "albert": ("pooler", _albert),
    "bert": ("pooler", _pooled),
    "camembert": ("cls", _roberta),
    "deberta": ("cls", _deberta),
    "deberta-v2": ("cls", _deberta),
    "distilbert": ("cls", _distilbert),
    "electra": ("cls", _electra),
    "mpnet": ("cls", _roberta),
    "roberta": ("cls", _roberta),
    "xlm-roberta": ("cls", _roberta),
}

IMAGES: _Table = {
    "convnext": ("pooler", _plain),
    "convnextv2": ("pooler", _plain),
    "deit": ("cls", _plain),
    "dinov2": ("cls+mean", _double),
    "resnet": ("pooler", _flattened),
    "swin": ("pooler", _plain),
    "vit": ("cls", _plain),
}

WORDS: _Table = {
    **dict.fromkeys(TEXTS, ("tokens", _words)),
    "albert": ("tokens", _words_of_albert),
    "distilbert": ("tokens", _words_of_distilbert),
}

TABLES: Mapping[str, _Table] = {
    "text-classification": TEXTS,
    "image-classification": IMAGES,
    "token-classification": WORDS,
}
"""Family -> kind of model -> what its head reads, and how it is built."""


def reads_of(family: str, kind: str) -> Reads:
    """Return what the head of a kind of model reads.

    Raises:
        ModelError: its layers are not known.

    >>> reads_of("text-classification", "bert"), reads_of("text-classification", "roberta")
    ('pooler', 'cls')
    """
    return _of(family, kind)[0]


def own_head(family: str, config: Any, outputs: int) -> Head:
    """Return the head that the class of transformers for the task has.

    Args:
        family: decides the task.
        config: of the backbone.
        outputs: number of logits.

    Raises:
        ModelError: the layers of this kind of model are not known.
    """
    return _of(family, str(config.model_type))[1](config, outputs)


def linear_head(width: int, outputs: int) -> Head:
    """Return one linear layer, ``classifier``."""
    return Head({"classifier": _linear(width, outputs)}, ("classifier",))


@torch.no_grad()
def new_values_(head: nn.Module, last: str, config: Any) -> None:
    """Set the first values of a new head: zeros in the last layer, and others drawn as transformers does, by name."""
    spread = float(getattr(config, "initializer_range", None) or _RANGE)
    for name, parameter in head.named_parameters():
        if name.startswith(f"{last}.") or name.endswith("bias"):
            parameter.zero_()
        else:
            draw = torch.Generator().manual_seed(seed_of("head", name, tuple(parameter.shape)))
            parameter.copy_(spread * torch.randn(parameter.shape, generator=draw))


def width_of(config: Any, reads: Reads) -> int:
    """Return the number of features that a head reads."""
    if reads == "pooler" and getattr(config, "pooler_output_size", None):
        return int(config.pooler_output_size)
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


def _of(family: str, kind: str) -> tuple[Reads, Callable[[Any, int], Head]]:
    table = TABLES[family]
    if kind not in table:
        fix = f"set layers: linear; known are {did_you_mean(kind, list(table))}"
        raise ModelError("the layers of this model's head are not known", got=kind, where="base.layers", fix=fix)
    return table[kind]


def _linear(width: int, outputs: int) -> nn.Linear:
    """Return a layer without values, which draws nothing."""
    made: nn.Linear = skip_init(nn.Linear, width, outputs)
    return made


def _dropout(config: Any) -> float:
    given = getattr(config, "classifier_dropout", None)
    return float(config.hidden_dropout_prob if given is None else given)
