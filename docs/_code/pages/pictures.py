"""The picture of a method: two updates, their sum, and what the method makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from pages.toys import fused, updates

if TYPE_CHECKING:
    from tangora.methods import Method

__all__ = ["draw"]

_INK = "#808080"  # readable on white and on the dark scheme's grey


def draw(method: Method, path: Path) -> None:
    """Write the picture of a method as PNG, on no background."""
    one, two = updates()
    result = fused(method)
    weight = method.default_weight
    total = weight * (one + two)
    panels = {"ν₁": one, "ν₂": two, f"{weight:g}·(ν₁ + ν₂)": total, method.name: result}
    with mpl.rc_context({"text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK}):
        figure = Figure(figsize=(8.6, 2.05), layout="constrained")
        axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.25])
        for place, (title, values) in zip(axes, panels.items(), strict=False):
            image = place.imshow(values, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
            place.set_title(title, fontsize=9)
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_color(_INK)
        bar = figure.colorbar(image, ax=list(axes[:4]), shrink=0.8, ticks=[-1, 0, 1])
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_edgecolor(_INK)
        _spectrum(axes[4], {"the sum": total, method.name: result})
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, transparent=True, metadata={"Software": None})


def _spectrum(place: Any, of: dict[str, torch.Tensor]) -> None:
    styles = (("o", "#a0a0a0"), (".", "#1f77b4"))
    for (label, values), (marker, colour) in zip(of.items(), styles, strict=True):
        sizes = torch.linalg.svdvals(values)[:10]
        place.plot(range(1, len(sizes) + 1), sizes, marker=marker, color=colour, label=label, linewidth=1)
    place.set_title("singular values", fontsize=9)
    place.set_ylim(bottom=0)
    place.set_xticks([1, 5, 10])
    place.tick_params(labelsize=8)
    place.spines[["top", "right"]].set_visible(False)
    place.spines[["left", "bottom"]].set_color(_INK)
    place.legend(frameon=False, fontsize=8)
    place.patch.set_alpha(0)
