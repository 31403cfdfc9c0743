"""Models that are linear in φ: ``f(x; φ₀) + J(x) (φ − φ₀)``, for any module and for task models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied
from tangora.errors import ModelError
from tangora.storage.held import widened
from tangora.storage.spread import places_of
from tangora.support.shown import html_table, one_line
from tangora.tangent._dual import dual_numbers, expand, expand_last, expand_mapped, in_dual_numbers, parts
from tangora.tangent.direction import Direction, direction_of
from tangora.tangent.lora import TangentLora
from tangora.tasks.caches import cache_of, cached_length
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.tasks import Base, Task
    from tangora.tasks.contract import Readout
    from tangora.tasks.values import Batch

__all__ = ["Offsets", "TangentModel", "TangentTaskModel", "at_start", "has_expansion"]


class TangentModel(nn.Module):
    r"""A module expanded to first order in an adapter's parameters, around their start.

    .. math:: f_{lin}(x; \varphi) = f(x; \varphi_0) + \nabla_\varphi f(x; \varphi_0)^\top (\varphi - \varphi_0)

    (arXiv:2310.04742, eq. 4). Every floating-point tensor that the module returns is expanded. Choose it to use a fused
    tangent adapter as it was trained and fused; loaded by peft, the same file gives the ordinary, non-linear network
    with these weights. A forward pass costs about two of the module's own.

    Args:
        model: the base model of ``adapter``; or, without one, a `PeftModel` prepared by `expand_lora`, to train its
            adapter.
        adapter: of any kind; the direction is its task vector.

    Raises:
        ModelError: the adapter does not fit, the model has no expansion, or (on a call) an operator has no forward
            derivative; the message names it.

    >>> import torch, peft
    >>> from tangora.tangent import expand_lora
    >>> base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    >>> peft_model = expand_lora(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"])))
    >>> tuple(TangentModel(peft_model)(torch.ones(3, 4)).shape)
    (3, 2)
    """

    def __repr__(self) -> str:
        return one_line("TangentModel", f"{type(self.model).__name__} expanded in an adapter's parameters")

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        parameters = list(self.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        facts = {"parameters": sum(p.numel() for p in parameters), "trained": trained}
        return html_table(repr(self), ["", ""], [[name, f"{count:,}"] for name, count in facts.items()])

    def __init__(self, model: nn.Module, adapter: Adapter | None = None) -> None:
        super().__init__()
        if adapter is None and not has_expansion(model):
            fix = "give an adapter, or prepare a PeftModel with tangora.tangent.expand_lora"
            raise ModelError("the model has no adapter to expand in", got=type(model).__name__, fix=fix)
        self.model = model
        self._adapter = adapter
        self._direction = direction_of(adapter, model) if adapter is not None else Direction()
        self._last: Callable[[Any], Any] | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the module's output with its tensors expanded.

        Raises:
            ModelError: an operator has no forward derivative, or a cache of keys and values is not empty: see `open`.
        """
        with self.open() as call:
            return call(*inputs, **named)

    @contextmanager
    def open(self) -> Iterator[Callable[..., Any]]:
        """Yield the model as a function; in the block, a cache that it returns can be given to its next call.

        A decoder generates with a cache of keys and values, which have tangents. These end with the block.

        >>> import torch, transformers
        >>> from tangora import Adapter
        >>> from tangora.tangent import TangentModel
        >>> config = transformers.GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1)
        >>> model = TangentModel(transformers.GPT2LMHeadModel(config).eval(), Adapter({}))
        >>> with torch.no_grad(), model.open() as call:
        ...     first = call(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True)
        ...     token = first.logits[:, -1:].argmax(-1)
        ...     second = call(input_ids=token, past_key_values=first.past_key_values, use_cache=True)
        >>> tuple(second.logits.shape)
        (1, 1, 8)
        """
        start = nullcontext() if self._adapter is None else at_start(self.model, [self._adapter])
        caches: list[Any] = []
        with start, dual_numbers(), self._direction.installed(self.model):

            def call(*inputs: Any, **named: Any) -> Any:
                _refuse_caches([*inputs, *named.values()], caches)
                output = self.model(*inputs, **named)
                caches.append(cache_of(output))
                return _summed(output if self._last is None else self._last(output))

            yield call

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TangentModel:
        """Move the direction with the weights, as ``to`` and ``cuda`` do."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._direction = self._direction.each(fn)
        return self

    def then(self, last: Callable[[Any], Any]) -> TangentModel:
        """Return the model with a further function included in the expansion.

        A run expands logits. A zero-shot head normalizes features, which is not linear: the model that was trained and
        scored is ``model.then(head)(**inputs)``, not ``head(model(**inputs))``.

        Args:
            last: applied to the module's output.

        >>> import torch
        >>> from tangora import Adapter
        >>> from tangora.updates.task_vector import LowRank
        >>> base, update = torch.nn.Linear(1, 1, bias=False), LowRank(torch.ones(1, 1), torch.ones(1, 1))
        >>> model = TangentModel(torch.nn.Sequential(base), Adapter({"0": update}))
        >>> _ = base.weight.data.fill_(3.0)
        >>> model(torch.ones(1, 1)).square().item(), model.then(torch.square)(torch.ones(1, 1)).item()  # 3² + 2·3·1
        (16.0, 15.0)
        """
        extended = copy.copy(self)
        extended._modules = dict(self._modules)  # or a module given here would be registered in both
        extended._last = last
        return extended


class Offsets(nn.Module):
    """An offset for every floating-point weight of a model, trained by full tangent fine-tuning; the base is unchanged.

    Tied weights have one offset.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        chosen = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        self.names = tuple(chosen)
        self.values = nn.ParameterList([nn.Parameter(torch.zeros_like(widened(p))) for p in chosen.values()])
        first = {id(p): i for i, p in enumerate(chosen.values())}
        self._index = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False) if id(p) in first}

    def direction(self) -> Direction:
        """Return the offsets as tangents of the weights."""
        return Direction(parameters={name: self.values[i] for name, i in self._index.items()})

    def named(self) -> Mapping[str, Tensor]:
        """Return parameter name -> its offset, tied ones once."""
        return dict(zip(self.names, self.values, strict=True))


class TangentTaskModel(TaskModel):
    """A task model with logits that are linear in φ; the expansion includes normalization and pooling.

    Parameters of the readout are not part of φ: the network is expanded at their current values.

    Args:
        backbone: the base's own, or a `PeftModel` around it that `expand_lora` prepared.
        task, base, readout: see `TaskModel`.
        direction: tangents of the backbone's weights, or the offsets that are trained; None if the LoRA layers have
            their own tangents.
    """

    def __init__(
        self,
        backbone: nn.Module,
        task: Task,
        base: Base,
        direction: Direction | Offsets | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__(backbone, task, base, readout)
        self.offsets = direction if isinstance(direction, Offsets) else None
        self._direction = direction if isinstance(direction, Direction) else Direction()

    def logits(self, inputs: Batch, labels: Tensor | None = None) -> Float[Tensor, "batch *tokens width"]:
        """Return expanded logits, float32."""
        primal, tangent = self.expansion(inputs, labels)
        return primal + tangent

    def losses(self, inputs: Batch, labels: Tensor) -> Float[Tensor, " batch"]:
        """Return the loss of each row at its expanded logits."""
        return self.readout.losses(self.logits(inputs, labels), labels)

    def expansion(
        self, inputs: Batch, labels: Tensor | None = None, mapped: Direction | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``f(x; φ₀)`` and ``J(x) (φ − φ₀)`` of the logits separately; inside `torch.vmap`, give ``mapped``.

        If the readout's parameters are being trained, the tangent has their graph.
        """

        def features() -> Tensor:
            with (mapped or self._installed()).installed(self.backbone), self._machine.autocast():
                return self.readout.features(self.backbone, inputs, labels).float()

        def logits() -> Tensor:
            with (mapped or self._installed()).installed(self.backbone):
                return TaskModel.logits(self, inputs, labels)

        if mapped is not None:
            return expand_mapped(logits)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.readout.parameters()):
            return expand_last(self.readout.logits, *expand(features))
        return expand(logits)

    def predict_batch(self, batch: Batch) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return answers by expanded logits, and losses of a batch's rows."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with dual_numbers(), self._installed().installed(self.backbone), self._machine.autocast():
            return self.readout.answer(self.backbone, inputs, batch["labels"], _summed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TangentTaskModel:
        """Move the direction with the weights, as ``to`` and ``cuda`` do."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._direction = self._direction.each(fn)
        return self

    def _installed(self) -> Direction:
        return self.offsets.direction() if self.offsets is not None else self._direction


def has_expansion(model: nn.Module) -> bool:
    """Return whether LoRA layers of the model are prepared by `expand_lora`."""
    variants = (v for m in model.modules() for v in getattr(m, "lora_variant", {}).values())
    return any(isinstance(variant, TangentLora) for variant in variants)


@contextmanager
def at_start(model: nn.Module, adapters: Sequence[Adapter], saved: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Put the base model at φ₀ for the length of the block: add ``s·B₀A₀`` to its weights if that is not zero.

    Raises:
        ModelError: the adapters start at different φ₀, or the model is spread over devices.
    """
    if places_of(model):
        fix = "leave base.device_map out"
        raise ModelError("an expansion needs the model on one device", where="base.device_map", fix=fix)
    starts = [Adapter(dict(adapter.start)) for adapter in adapters]
    prints = {start.fingerprint: start for start in starts}
    if len(prints) > 1:
        got = " and ".join(name[:12] for name in prints)
        fix = "train them with a_init: shared and one seed"
        raise ModelError("the adapters start at different φ₀", got=got, where="linearize: model", fix=fix)
    with applied(model, starts[0], saved) if starts[0].updates else nullcontext():
        yield


def _refuse_caches(values: Sequence[Any], own: Sequence[Any]) -> None:
    """Refuse caches with states from elsewhere, which have no tangents here."""
    if not in_dual_numbers():
        raise ModelError("the block has ended", where="TangentModel.open", fix="call the function inside the block")
    for value in values:
        if cached_length(value) and not any(value is cache for cache in own):
            fix = "make all calls with one cache in one block `with model.open() as call`, or give all tokens each time"
            what = "the states in this cache have no tangents"
            raise ModelError(what, got=type(value).__name__, where="past_key_values", fix=fix)


def _summed(value: Any) -> Any:
    """Return a module's output with primal plus tangent for every tensor."""
    if isinstance(value, Tensor):
        primal, tangent = parts(value)
        return primal if tangent is None else primal + tangent
    if isinstance(value, Mapping):  # also transformers' outputs, constructed from their items
        summed = {name: _summed(item) for name, item in value.items()}
        return type(value)(**summed) if hasattr(value, "to_tuple") else summed
    if isinstance(value, (list, tuple)):
        return type(value)(_summed(item) for item in value)
    return value
