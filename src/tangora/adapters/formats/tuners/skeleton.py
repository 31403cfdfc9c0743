"""The class of a base with shapes instead of weights, wrapped by stock peft, which loads an adapter's tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tangora.adapters.formats.tuners.known import Tuner
from tangora.errors import AdapterError
from tangora.storage.architecture import build, class_names, class_of
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import Stored
from tangora.storage.names import Names
from tangora.storage.tensors import read_rows

__all__ = ["Wrapped", "peft_settings", "wrap"]

NAME = "default"  # peft's name for the adapter
_NOTHING: tuple[Any, ...] = (None, False, [], {})


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A base's class in peft: the adapted layers are there with their tensors, and no weight of the base.

    Attributes:
        layers: site -> peft's layer.
        own: the parameters of the base's layers, which take no memory -> their names.
        base: the checkpoint.
        config: ``adapter_config.json``.
        where: the adapter's folder.
    """

    layers: Mapping[str, Any]
    own: Mapping[nn.Parameter, str]
    base: Checkpoint
    config: Mapping[str, Any]
    where: Path

    @cached_property
    def names(self) -> Names:
        """The base's names for the parameters of adapted layers."""
        wanted = {name: tuple(parameter.shape) for _, _, parameter, name in self.parameters()}
        return Names(self.base, dict(wanted), self.config)

    def parameters(self) -> Iterator[tuple[str, str, nn.Parameter, str]]:
        """Yield site, name in the layer, parameter, and its name in the model, of every adapted layer of the base."""
        for site, layer in self.layers.items():
            for name, parameter in layer.get_base_layer().named_parameters():
                yield site, name, parameter, self.own.get(parameter, f"{site}.{name}")

    def stored(self, name: str, shape: torch.Size | tuple[int, ...]) -> Stored:
        """Return where the base stores a parameter.

        Raises:
            AdapterError: it has no such parameter, or of another shape.
        """
        found = self.base.find(self.names(name))
        if found is None or found.shape != tuple(shape):
            got = "nothing" if found is None else list(found.shape)
            what = f"the base's parameter is not that of its class, {list(shape)}"
            fix = "give the base model that the adapter was made for"
            raise AdapterError(what, got=got, where=f"{name} in {self.base.folder}", fix=fix)
        return found

    def read(self, name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Read a parameter of the base in float32 (float64 stays)."""
        stored = self.stored(name, shape)
        return read_rows(stored, 0, stored.shape[0]).reshape(stored.shape)


def wrap(
    tensors: Mapping[str, Tensor],
    settings: Any,
    config: Mapping[str, Any],
    tuner: Tuner,
    base: Checkpoint,
    folder: Path,
) -> Wrapped:
    """Load an adapter's own tensors with stock peft, into the class of its base.

    The class is the one that the adapter names, else that of its task, else the base's own: the first of which peft
    adapts exactly the layers that the file has tensors of.

    Args:
        tensors: the kind's own, by peft's names.
        settings: peft's configuration.
        config: ``adapter_config.json``.
        tuner: the kind.
        base: the checkpoint of the base.
        folder: of the adapter, for errors.

    Raises:
        AdapterError: peft refuses the files; no class fits; or a tensor is missing or left.
    """
    first: AdapterError | None = None
    for name in class_names(base.config, config):
        if (model := _without_weights(base, name)) is None:
            continue
        try:
            wrapped = _wrapped(model, settings, tensors, base, config, folder)
            if not tuner.starts_from_base:
                return wrapped
            return _wrapped(_without_weights(base, name), settings, tensors, base, config, folder, wrapped)
        except AdapterError as error:
            first = first or error
    if first is not None:
        raise first
    if (named := class_of(config)) is not None:
        what, fix = f"the adapter was made for {named}, which the base is not", "give the base that it was made for"
        raise AdapterError(what, got=base.config.get("architectures"), where=base.folder, fix=fix)
    what = "transformers has no class for the base, in which peft's layers could be built"
    fix = "merge the adapter into its base with peft, and give the merged checkpoint"
    raise AdapterError(what, got=base.config.get("architectures"), where=base.folder, fix=fix)


def peft_settings(config: Mapping[str, Any], tuner: Tuner, folder: Path) -> Any:
    """Return peft's configuration.

    Raises:
        AdapterError: peft does not have the kind, refuses the configuration, or would ignore a setting.
    """
    import peft  # deferred: it takes seconds to import
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(config["peft_type"]).upper()
    known = {str(key.value): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        fix = "install a peft that has it, or merge it into its base there, and give the merged checkpoint"
        raise AdapterError(f"peft {peft.__version__} has no such kind", got=f"peft_type {kind}", where=folder, fix=fix)
    fields = {field.name for field in fields_of(known[kind])}
    for key, value in config.items():
        if key not in fields and value not in _NOTHING:
            what = f"{tuner.title}: unknown setting {key!r}, which peft {peft.__version__} would ignore"
            raise AdapterError(what, got=value, where=folder, fix="unset it if it changes nothing; else update peft")
    with _stock(tuner.title, folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
        if settings.is_prompt_learning:
            fix = "use it with peft; only changes of weights can be fused"
            raise AdapterError(f"{tuner.title} changes the input, and no weight", where=folder, fix=fix)
    settings.inference_mode = True
    settings.task_type = None  # the methods that peft adds for a task need a whole model
    settings.modules_to_save = None  # read from the file, and not adapted
    if hasattr(settings, "bias"):
        settings.bias = "none"  # as above
    return settings


def _without_weights(base: Checkpoint, name: str) -> Any:
    """Return a class with views of one zero as weights: they take no memory, and have a device, unlike meta tensors."""
    model = build(base.config, name)
    zeros: dict[int, nn.Parameter] = {}
    for module in model.modules() if model is not None else ():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                made = zeros.setdefault(id(parameter), nn.Parameter(_zeros(parameter.shape), requires_grad=False))
                module._parameters[key] = made
    return model


def _zeros(shape: torch.Size) -> Tensor:
    return torch.zeros(()).expand(shape)


def _wrapped(
    model: nn.Module,
    settings: Any,
    tensors: Mapping[str, Tensor],
    base: Checkpoint,
    config: Mapping[str, Any],
    folder: Path,
    like: Wrapped | None = None,
) -> Wrapped:
    """Wrap a model; with ``like``, the same model wrapped before, the adapted layers have their weights meanwhile."""
    own = {parameter: name for name, parameter in model.named_parameters()}
    if like is not None:
        for _, _, parameter, name in like.parameters():
            model.get_parameter(name).data = like.read(name, parameter.shape).float()
    wrapped = Wrapped(_injected(model, settings, tensors, folder), own, base, config, folder)
    for _, _, parameter, name in wrapped.parameters():
        # A view of one zero still is one.
        untouched = not any(parameter.stride()) and not bool(parameter.any())
        if like is not None:
            untouched = torch.equal(parameter, like.read(name, parameter.shape).float())
        if not untouched:
            what = f"{settings.peft_type.value} changes the base's weight when it is loaded"
            fix = "merge it into its base with peft, and give the merged checkpoint"
            raise AdapterError(what, where=f"{name} in {folder}", fix=fix)
        parameter.data = _zeros(parameter.shape)
    return wrapped


def _injected(model: nn.Module, settings: Any, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Let peft wrap the model and load the tensors; return the adapted layers.

    What peft would save of the wrapped model must have exactly the names that the file has. So no tensor is ignored,
    and none keeps the random values that it is created with.
    """
    import peft  # deferred: it takes seconds to import
    from peft.tuners.tuners_utils import BaseTunerLayer

    kind = settings.peft_type.value
    with _stock(kind, folder), torch.random.fork_rng(devices=[]):
        inner: Any = peft.PeftModel(model, copy.deepcopy(settings), NAME)
        peft.set_peft_model_state_dict(inner, dict(tensors), NAME)
        saved = peft.get_peft_model_state_dict(inner, adapter_name=NAME, save_embedding_layers=False)
    if odd := sorted(saved.keys() ^ tensors.keys()):
        what = "the file lacks a tensor" if odd[0] in saved else "stock peft has no use for a tensor"
        fix = "give the base that it was made for, or save it again with this peft"
        raise AdapterError(f"{kind}: {what}", got=odd[0], where=folder, fix=fix)
    layers: dict[str, Any] = {}
    for name, module in inner.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and ".base_layer" not in name:
            layers[name] = module
    if not layers:
        fix = "use it with peft; only changes of weights can be fused"
        raise AdapterError(f"{kind} adapts no layer of the base", where=folder, fix=fix)
    return layers


class _stock:
    """Turn whatever a kind raises on a file or a configuration that it does not expect into an `AdapterError`."""

    def __init__(self, title: str, where: Path) -> None:
        self.title, self.where = title, where
        self.quiet = warnings.catch_warnings()

    def __enter__(self) -> None:
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        self.quiet.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, AdapterError):
            what = f"{self.title}: stock peft does not load it ({str(error)[:200]})"
            fix = "give the base that it was made for, or save it again with this peft"
            raise AdapterError(what, where=self.where, fix=fix) from error
