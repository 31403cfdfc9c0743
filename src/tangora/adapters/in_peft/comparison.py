"""Compare what stock peft computes from an adapter's folder with what it should be, site by site, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from tangora.adapters.comparison import Loaded, relative
from tangora.adapters.formats.lora.layers import expert_of
from tangora.adapters.formats.lora.writing import Content, content_of, write_config
from tangora.adapters.in_peft.skeleton import load_in_peft, peft_layers, peft_state
from tangora.adapters.initial import seed_of
from tangora.errors import AdapterError

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["InPeft"]


class InPeft(Loaded):
    """An adapter's folder as stock peft loads it, compared one site at a time."""

    reader = "stock peft"

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        content = content_of(adapter)
        model = load_in_peft(content, _config(adapter, content), folder)
        self.layers, self._state = peft_layers(model), peft_state(model) if content.whole else {}
        self.embeddings, self.seed = adapter.embeddings, seed_of("verify", str(len(adapter.updates)))

    def dense(self, site: str) -> Tensor:
        """Return what peft adds to the weight of a site, in float64."""
        return self._dense(site).double()

    def compare_whole(self, name: str, expected: Tensor) -> float:
        """Return the relative difference of a parameter that is saved whole."""
        stem, _, kind = name.rpartition(".")
        names = (name, f"{stem}.base_layer.{kind}")
        loaded = next((self._state[n] for n in names if n in self._state), None)
        if loaded is None:
            raise AdapterError("stock peft does not load a parameter that is saved whole", where=name, fix="report it")
        return relative(loaded.double() - expected.double(), expected.double())

    def _dense(self, site: str) -> Tensor:
        if site.endswith(".bias") and site.removesuffix(".bias") in self.layers and site not in self.layers:
            layer = self.layers[site.removesuffix(".bias")]
            bias: Tensor = layer.lora_B["default"].bias.detach() * layer.scaling["default"]
            return bias
        expert = expert_of(site)
        delta: Tensor = self._layer(site).get_delta_weight("default").detach()
        if expert:
            return delta[expert[1]] if delta.ndim == 3 else delta
        return delta.T if site in self.embeddings else delta

    def _layer(self, site: str) -> Any:
        expert = expert_of(site)
        if (layer := self.layers.get(expert[0] if expert else site)) is None:
            raise AdapterError("stock peft adapts no such site", where=site, fix="report it")
        return layer

    def times(self, site: str, x: Float[Tensor, "in probes"]) -> Float[Tensor, "out probes"]:
        """Return the product of what peft adds to the weight of a site, in float64."""
        layer = self._layer(site)
        if expert_of(site) and layer.num_experts > 1:
            return self._dense(site).double() @ x
        if site in self.embeddings:
            a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
        else:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        y: Tensor = b.detach().flatten(1).double() @ (a.detach().flatten(1).double() @ x)
        return y * float(layer.scaling["default"])


def _config(adapter: Adapter, content: Content) -> dict[str, Any]:
    return write_config(content, adapter.config, None)
