"""The figures of a report, in the order of the page.

Each is one function from a run and a layout to a `matplotlib.figure.Figure`, used for the file and for the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from tangora.report.figures import bars, coefficient, linearity, planes, polish, scaling, similarity, training, ways
from tangora.report.seeds import named
from tangora.report.summary import Summary
from tangora.report.theme import Layout

__all__ = ["PLOTS", "Plot"]


@dataclass(frozen=True)
class Plot:
    """A figure and its texts.

    Attributes:
        name: file name, anchor.
        title: heading.
        caption: describes the figure and how to read it.
        draw: draws it.
        absent: returns why it cannot be drawn from these files, or None.
        extra: whether only some runs have it (``tangora analyze``, a polish): without its file, there is no section.
        seeds: what the caption of a run of several seeds says too.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Summary, Layout], Figure]
    absent: Callable[[Summary], str | None]
    extra: bool = False
    seeds: str = ""

    def of(self, summary: Summary) -> Plot:
        """Return the figure with what its caption says of a run of several seeds."""
        if not summary.run.seeds or not self.seeds:
            return self
        texts = {"seeds": named(summary.run.seeds), "first": f"seed {summary.run.seeds[0]}"}
        return replace(self, caption=f"{self.caption} {self.seeds.format(**texts)}")


PLOTS = (
    Plot(
        "score_by_tasks",
        "Score by number of fused tasks",
        "Mean test score over the tasks in a subset. A line joins the means over subsets of one size, small dots are "
        "single subsets, upright strokes 95 % bootstrap intervals; at 1 stand the experts themselves, unfused. "
        "Dotted: the base model, zero-shot.",
        scaling.absolute,
        scaling.no_mean,
        seeds="Means over {seeds}, and small dots single seeds too; strokes are intervals over seeds and test rows.",
    ),
    Plot(
        "kept_by_tasks",
        "Kept by number of fused tasks",
        "The same scores divided by those of the same mode's own experts, so that 1 is nothing lost. "
        "A mode with weak experts can keep much and still score little: read this beside the absolute scores.",
        scaling.kept,
        scaling.absent,
        seeds="Means over {seeds}, each with the experts of its own; small dots are single seeds.",
    ),
    Plot(
        "per_task",
        "Task by task",
        "Test scores on the largest subset: a pale bar is the mode's own expert for the task, the full bar below it "
        "the fused adapter; whiskers are bootstrap 95 % intervals, the upright line is the base model, zero-shot. If "
        "the tasks' metrics have no common scale, all of these are shares of the best expert's score.",
        bars.draw,
        bars.absent,
        seeds="Means over {seeds}; dots are single seeds, whiskers intervals over seeds and test rows.",
    ),
    Plot(
        "coefficient",
        "Score by coefficient λ",
        "Mean score on the validation split over the tasks of the largest subset, for each λ of the grid; the large "
        "marker is the chosen one. If the tasks' metrics have no common scale, it is the mean share of the own "
        "experts' scores. Faint lines are the method's other parameter settings. Test data plays no part here.",
        coefficient.draw,
        coefficient.absent,
        seeds="Lines are means over {seeds}, thin ones single seeds; each λ that one of them chose has a large marker.",
    ),
    Plot(
        "similarity",
        "Cosine similarity of task vectors",
        "The nearer to 0 off the diagonal, the less two tasks pull at the same directions. Blue is positive, orange "
        "negative, the stronger the larger; one colour scale for every mode.",
        similarity.draw,
        similarity.absent,
        seeds="Means over {seeds}, each between task vectors of one seed.",
    ),
    Plot(
        "training",
        "Training",
        "Training loss of each expert by optimizer step: faint as logged, the line smoothed over a tenth of the "
        "run; markers are the loss on validation.",
        training.draw,
        training.absent,
        seeds="Means over {seeds}; the faint lines are single seeds, smoothed too.",
    ),
    Plot(
        "polish",
        "Polish",
        "Mean divergence of the answers of each expert from those of the adapter (with labels: the loss) on rows that "
        "were held out, by optimizer step; 0 is the fusion that it started from, the dotted line the weights that were "
        "kept.",
        polish.draw,
        polish.absent,
        extra=True,
        seeds="The line with markers is {first}, thin ones are the others.",
    ),
    Plot(
        "ways",
        "Fuse, route or train jointly",
        "Each way to one model of these tasks: mean test score against the numbers that its files hold per task, and "
        "against the data that it needs: beyond the experts for fused and routed adapters. Colours are separate, "
        "fused, routed and jointly trained adapters. If the metrics have no common scale, it is the mean share of the "
        "experts' scores.",
        ways.draw,
        ways.absent,
        extra=True,
        seeds="Means over {seeds}; strokes are their standard deviations. Sizes are those of {first}.",
    ),
    Plot(
        "disentanglement",
        "Weight disentanglement",
        "Disentanglement error ξ(λ₁, λ₂) in the plane of two task vectors: on each task's own rows the share of "
        "predictions that the other task's vector changes, added over both tasks. 0 (no ink): they do not touch each "
        "other; 2: every prediction changes. Beside the mode stands the mean over the framed points, [0, 1]².",
        planes.error,
        planes.absent,
        extra=True,
        seeds="Experts of {first}.",
    ),
    Plot(
        "landscape",
        "Loss landscape",
        "Mean of two tasks' losses in the plane φ₀ + λ₁ν₁ + λ₂ν₂ of their task vectors, the stronger the lower; "
        "contours of a pair are at the same heights in every mode. One wide basin around the diagonal lets the "
        "experts add up; a ridge between them does not.",
        planes.loss,
        planes.absent,
        extra=True,
        seeds="Experts of {first}.",
    ),
    Plot(
        "sign_conflict",
        "Sign conflict of task vectors",
        "Share of a weight's entries that two task vectors move in opposite directions: below the diagonal every entry "
        "counts the same, above it by the product of the two magnitudes. Half is chance; orange is more conflict "
        "than that, blue less.",
        similarity.signs,
        similarity.no_signs,
        extra=True,
        seeds="Experts of {first}.",
    ),
    Plot(
        "subspaces",
        "Common directions",
        "Mean squared cosine of the principal angles between two tasks' updates, over sites and their leading "
        "directions: below the diagonal of what they write to (outputs), above it of what they read from (inputs). "
        "1 is one subspace, 0 two orthogonal ones. Adapters with one frozen A₀ read the same inputs.",
        similarity.angles,
        similarity.no_angles,
        extra=True,
        seeds="Experts of {first}.",
    ),
    Plot(
        "linearity",
        "Linearity gap",
        "The network at φ₀ + a·τ against its first-order expansion at φ₀, each expert on its own task's rows: distance "
        "of the logits, as a share of how far the network itself moved them, and share of rows with the same "
        "prediction. Faint lines are single experts, the others their means; an expert itself is at a = 1.",
        linearity.draw,
        linearity.absent,
        extra=True,
        seeds="Experts of {first}.",
    ),
)
