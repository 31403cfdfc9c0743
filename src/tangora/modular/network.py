"""`Network`: the modules that a mode adds to a backbone, with the hooks that connect them; put in and taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["NAME", "Network", "attach", "attached", "drawing"]

NAME = "added_modules"
"""The child of a backbone that is the network, so that its parameters are among the backbone's."""


class Network(nn.Module):
    """Modules that are added to a backbone. Derive from it, and implement `connect`.

    Attributes:
        task: the number of the task that the present batch is of, if the network depends on it;
            `tangora.modular.conditioned.ConditionedTaskModel` sets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task = 0
        self._mask: Tensor | None = None

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Register hooks in the backbone, and yield their handles; begin with ``yield from super().connect(backbone)``.

        Raises:
            ModelError: the backbone lacks what the network is connected to.
        """
        yield backbone.register_forward_pre_hook(self._note, with_kwargs=True)
        known: Any = backbone
        if getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
            # a generation calls the encoder by itself
            yield known.get_encoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def check_values(self) -> None:
        """Refuse values from a file that the network cannot have; most networks can have any.

        Raises:
            AdapterError: names the part.
        """

    def mask_of(self, hidden: Tensor) -> Tensor | None:
        """Return which positions of the hidden states are tokens and no padding, of shape [batch, length].

        With a cache of earlier tokens, ``hidden`` contains the last positions only.

        Args:
            hidden: [batch, length, width], inside a forward pass of the backbone.

        Returns:
            float of 0 and 1; None if the batch has no mask, as images have none.
        """
        if self._mask is None or self._mask.ndim != 2 or self._mask.shape[1] < hidden.shape[1]:
            return None
        return self._mask[:, -hidden.shape[1] :].to(hidden.dtype)

    def _note(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask = named.get("attention_mask")


def attach(backbone: nn.Module, network: Network) -> contextlib.ExitStack:
    """Put a network into a backbone, on its device and in its mode.

    Returns:
        a context that takes it out again when it is closed; keep the network in by not closing it.

    Raises:
        ModelError: the backbone has such modules already, or lacks what the network is connected to.
    """
    if hasattr(backbone, NAME):
        fix = "load the base again"
        raise ModelError("the base has added modules already", got=type(backbone).__name__, where=NAME, fix=fix)
    with contextlib.ExitStack() as stack:
        network.to(next(backbone.parameters()).device).train(backbone.training)
        backbone.add_module(NAME, network)
        stack.callback(delattr, backbone, NAME)
        for handle in network.connect(backbone):
            stack.callback(handle.remove)
        return stack.pop_all()


@contextlib.contextmanager
def attached(backbone: nn.Module, network: Network) -> Iterator[None]:
    """Put a network into a backbone for the length of the block; see `attach`."""
    with attach(backbone, network):
        yield


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Draw random numbers from a seed in the block, and leave the global state as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield
