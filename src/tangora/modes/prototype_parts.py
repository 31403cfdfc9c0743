"""What the adapters of ``pha`` contain: the modules of one task, and the network that new tasks start from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tangora.adapters.adapter import Adapter, load
from tangora.config.pha import JointPart, ModuleShapes
from tangora.errors import AdapterError, ModelError
from tangora.modes.belonging import refuse_another_base
from tangora.modular.pha.networks import JOINT, ParallelAdapters, PrototypeNetwork
from tangora.support.validation import validate

if TYPE_CHECKING:
    from tangora.config.pha import PrototypeSettings
    from tangora.tasks import Base

__all__ = ["answering_part", "joint_part", "load_start", "parallel_adapters", "read_start"]


def parallel_adapters(adapter: Adapter) -> ParallelAdapters:
    """Return a network for one task's adapters.

    Raises:
        AdapterError: ``tangora.json`` does not describe the modules.
    """
    return ParallelAdapters(_shapes(adapter))


def answering_part(adapter: Adapter) -> Adapter:
    """Return an adapter without the tensors that are for new tasks."""
    return replace(adapter, updates={n: u for n, u in adapter.updates.items() if not n.startswith(JOINT)})


def read_start(base: Base, settings: PrototypeSettings) -> Adapter:
    """Read the adapter that ``start`` names.

    Raises:
        FileError: there is none.
        AdapterError: it is of another mode, was written without the network, or has other sizes.
        ModelError: it was made for another base.
    """
    adapter = load(str(settings.start))
    refuse_another_base(adapter, base)
    sizes = joint_part(adapter).sizes
    for key, value in sizes.model_dump().items():
        if getattr(settings, key) != value:
            fix = f"set {key}: {value}, as in the training to start from"
            raise ModelError("the earlier network has another size", got=getattr(settings, key), where=key, fix=fix)
    return adapter


def joint_part(adapter: Adapter) -> JointPart:
    """Return what an adapter records of the network that it contains for new tasks.

    Raises:
        AdapterError: it contains none.
    """
    if (joint := _shapes(adapter).joint) is None:
        what = "the adapter does not contain the generator, the prototypes and the retriever"
        raise AdapterError(what, where="start", fix="train it with keep: true")
    return joint


def load_start(network: PrototypeNetwork, adapter: Adapter) -> None:
    """Load an earlier network's values into a new one, and its prototypes as those of earlier tasks.

    Raises:
        AdapterError: a tensor is missing, or has another shape.
    """
    tensors = {name: update.dense() for name, update in adapter.updates.items()}
    expected = (len(joint_part(adapter).tasks), network.sizes.prototype)
    prototypes = tensors.get(f"{JOINT}prototypes")
    try:
        network.load_kept(tensors)
    except RuntimeError as cause:
        detail = " ".join(str(cause).split())[:300]
        fix = "give the base of that training, and copy the adapter's folder again"
        raise AdapterError(f"the earlier network does not fit ({detail})", where="start", fix=fix) from cause
    if prototypes is None or tuple(prototypes.shape) != expected:
        got = None if prototypes is None else tuple(prototypes.shape)
        fix = "copy the adapter's folder again"
        raise AdapterError(f"prototypes must have the shape {expected}", got=got, where="start", fix=fix)
    network.earlier = prototypes


def _shapes(adapter: Adapter) -> ModuleShapes:
    if adapter.metadata.train != "pha" or adapter.metadata.modules is None:
        fix = "give the folder of an adapter of train: pha"
        raise AdapterError("not an adapter of pha", got=adapter.metadata.train, where="tangora.json", fix=fix)
    return validate(ModuleShapes, adapter.metadata.modules, "tangora.json, modules", AdapterError)
