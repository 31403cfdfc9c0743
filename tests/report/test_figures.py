from __future__ import annotations

import functools
import json
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from synthetic import TASKS, make_run

from tangora.report.data import Run, read_run
from tangora.report.figures import PLOTS, coefficient, legend, planes
from tangora.report.palette import COLORS
from tangora.report.summary import Summary
from tangora.report.theme import LAYOUTS, NARROW, WIDE, inline_svg, save, settle, style

BY_NAME = {plot.name: plot for plot in PLOTS}


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> Summary:
    return Summary(read_run(make_run(tmp_path_factory.mktemp("small"), TASKS[:2])))


@functools.cache
def draw(summary, name, layout=WIDE):
    with style(layout, name):
        figure = BY_NAME[name].draw(summary, layout)
        settle(figure)
        return figure, inline_svg(figure, name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_colour_follows_the_theme_and_every_id_is_used(summary, name, layout):
    _, svg = draw(summary, name, layout)
    assert re.findall(r"(?<!href=\")#[0-9a-fA-F]{6}", svg) == []
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLORS)
    assert "<style" not in svg
    assert "font-family" not in svg
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert set(re.findall(r' id="([^"]+)"', svg)) == used
    assert all(identifier.startswith(f"{name}-") for identifier in used)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_text_is_smaller_than_eleven_units_or_outside(summary, name):
    for layout in LAYOUTS:
        figure, svg = draw(summary, name, layout)
        sizes = [float(s) for s in re.findall(r"font-size: ([\d.]+)px", svg)]
        sizes += [float(s) for s in re.findall(r"font: (?:\w+ )?([\d.]+)px", svg)]
        assert sizes
        assert min(sizes) >= (10 if name in {"similarity", "sign_conflict", "subspaces"} else 11)
        assert figure.get_size_inches()[0] * 72 == pytest.approx(layout.width)


def test_text_is_text(summary):
    _, svg = draw(summary, "per_task")
    assert ">sst2</text>" in svg
    assert ">test score</text>" in svg


def test_files_are_the_same_bytes_each_time(summary, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with style(WIDE, "x"):
            save(BY_NAME["coefficient"].draw(summary, WIDE), tmp_path / folder, "x")
    for name in ("x.png", "x.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert draw.__wrapped__(summary, "coefficient")[1] == draw(summary, "coefficient")[1]


def test_the_users_matplotlib_settings_neither_leak_in_nor_change(summary):
    import matplotlib as mpl

    plain = draw(summary, "training")[1]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert draw.__wrapped__(summary, "training")[1] == plain
        assert mpl.rcParams["font.size"] == 30


def test_lines_start_at_the_experts_and_pass_through_the_means(summary):
    with style(WIDE, "x"):
        figure = BY_NAME["score_by_tasks"].draw(summary, WIDE)
    axis = next(a for a in figure.axes if a.get_title(loc="left") == "LoraHub")
    drawn = [line.get_ydata() for line in axis.get_lines() if line.get_marker() in ("o", "s", "^")]
    key = next(k for k in summary.fused if k.method == "lorahub" and k.mode == "lora")
    expert = sum(r.score for r in summary.experts("lora").values()) / 2
    assert drawn[0].tolist() == pytest.approx([expert, summary.by_size(key)[2].score])


def test_bars_are_the_scores(summary):
    with style(WIDE, "x"):
        figure = BY_NAME["per_task"].draw(summary, WIDE)
    axis = next(a for a in figure.axes if a.get_title(loc="left") == "task arithmetic (factors)")
    key = next(k for k in summary.fused if k.space == "factors")
    fused = summary.fused_scores(key, summary.largest)
    experts = summary.experts("lora")
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == pytest.approx([experts[t].score for t in TASKS[:2]] + [fused[t].score for t in TASKS[:2]])


def test_the_marker_of_a_coefficient_is_the_chosen_one(summary):
    curve = ("lora", "task_arithmetic", "delta", "{}")
    points = coefficient.curves(summary)[curve]
    other = next(x for x in points if x != max(points, key=points.__getitem__))
    written = json.dumps({"weights": [other] * len(summary.largest.split("+"))})
    rows = [
        replace(r, coefficients=written)
        if (r.mode, r.method, r.space, r.subset) == (*curve[:3], summary.largest)
        else r
        for r in summary.run.scores
    ]
    again = Summary(replace(summary.run, scores=rows))
    assert coefficient.chosen(again)[curve] == other
    figure = coefficient.draw(again, WIDE)
    axis = next(a for a in figure.axes if "task arithmetic" in (a.get_title(), a.get_title(loc="left")))
    marked = [
        tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in axis.lines if len(line.get_xdata()) == 1
    ]
    assert (other, points[other]) in marked


def test_coefficient_curves_are_means_over_the_fused_tasks_on_validation(summary):
    found = coefficient.curves(summary)
    points = found["lora", "task_arithmetic", "delta", "{}"]
    assert len(points) == 21
    chosen = [c for c in summary.run.candidates if (c.mode, c.method, c.space) == ("lora", "task_arithmetic", "delta")]
    at = [c.score for c in chosen if c.weights == [0.3, 0.3]]
    assert points[0.3] == pytest.approx(sum(at) / 2)
    on_test = [replace(c, split="test") for c in summary.run.candidates]
    assert coefficient.curves(Summary(replace(summary.run, candidates=on_test))) == {}
    unequal = [replace(c, weights=[c.weights[0], 9.0]) for c in summary.run.candidates]
    assert coefficient.curves(Summary(replace(summary.run, candidates=unequal))) == {}


def test_cosines_are_written_into_their_cells(summary):
    _, svg = draw(summary, "similarity")
    value = summary.run.similarity["lora"].cosine[0][1]
    assert f">{value:.2f}<".replace("0.", ".").replace("-", "−") in svg


def test_every_cell_of_a_plane_is_in_its_band(summary):
    plane = planes._ordered(summary)[1]
    with style(WIDE, "x"):
        figure = BY_NAME["disentanglement"].draw(summary, WIDE)
    axis = figure.axes[1]
    assert axis.get_title(loc="left") == f"LoRA · ξ {plane.mean_error:.2f}"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("λ sst2", "λ trec6")
    shades = {}  # centre of a cell -> opacity
    for patch in axis.patches[:-1]:
        for square in patch.get_path().to_polygons():
            shades[tuple(round(float(x), 6) for x in square[:4].mean(0))] = patch.get_alpha()
    listed = [
        (plane.error[i][j], shades.get((round(x, 6), round(y, 6)), 0.0))
        for i, x in enumerate(plane.coefficients)
        for j, y in enumerate(plane.coefficients)
    ]
    assert [shade for value, shade in sorted(listed)] == sorted(shade for _, shade in listed)  # higher is stronger
    assert all((shade == 0) == (value == 0) for value, shade in listed)


def test_the_star_of_a_landscape_is_the_lowest_point(summary):
    with style(WIDE, "x"):
        figure = BY_NAME["landscape"].draw(summary, WIDE)
    star = next(line for line in figure.axes[1].get_lines() if line.get_marker() == "*")
    plane = planes._ordered(summary)[1]
    x, y = (plane.coefficients.index(float(v[0])) for v in (star.get_xdata(), star.get_ydata()))
    assert plane.loss[x][y] == min(min(row) for row in plane.loss)


def test_two_measures_share_one_matrix(summary):
    entry = replace(summary.run.analyses.signs[0], one=[[0.0, 0.1], [0.2, 0.0]], other=[[0.0, 0.3], [0.4, 0.0]])
    assert entry.combined() == [[0.0, 0.3], [0.2, 0.0]]
    assert entry.means() == (0.2, 0.4)


def test_lines_of_the_linearity_gap_are_means_over_experts(summary):
    with style(WIDE, "x"):
        figure = BY_NAME["linearity"].draw(summary, WIDE)
    drawn = [line for line in figure.axes[0].get_lines() if line.get_marker() == "s"]
    of_mode = [p.distance for p in summary.run.analyses.paths if p.mode == "lora"]
    assert drawn[0].get_ydata().tolist() == pytest.approx([sum(v) / len(v) for v in zip(*of_mode, strict=True)])


@pytest.mark.parametrize("name", BY_NAME)
def test_absence_has_a_reason(name):
    empty = Summary(Run(path=None, scores=[], missing={"similarity.json": "gone", "training.json": "gone"}))
    reason = BY_NAME[name].absent(empty)
    assert reason
    assert not reason.endswith(".")


def test_a_narrow_legend_takes_more_rows():
    lengths = [11] * 6
    assert legend._columns(WIDE, lengths) == 6
    assert legend._columns(NARROW, lengths) == 2
    assert legend._columns(NARROW, [60]) == 1


def _luminance(hexadecimal: str) -> float:
    channels = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    ground = COLORS["bg"][theme]
    for role in ("fg", "muted", "s0"):  # s0 is the colour of links too
        assert _contrast(COLORS[role][theme], ground) >= 4.5
    for role in (r for r in COLORS if r.startswith("s")):
        assert _contrast(COLORS[role][theme], ground) >= 3
    for role in ("s0", "s1"):  # a number on the strongest cell of a heat map
        mixed = [round((int(COLORS[role][theme][i : i + 2], 16) + int(ground[i : i + 2], 16)) / 2) for i in (1, 3, 5)]
        assert _contrast(COLORS["fg"][theme], "#" + "".join(f"{c:02x}" for c in mixed)) >= 4.5


def test_every_colour_stands_for_one_role():
    assert len({light for light, _ in COLORS.values()}) == len(COLORS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.name)
@pytest.mark.parametrize("name", ["score_by_tasks", "per_task", "coefficient", "similarity"])
def test_eleven_modes_are_told_apart_and_leave_the_panels_their_height(summary, name, layout):
    run = summary.run
    modes = [f"lora-of-a-long-name-{i}" for i in range(11)]
    many = replace(
        run,
        recipe={**run.recipe, "modes": {m: {} for m in modes}},
        scores=[replace(s, mode=m) for m in modes for s in run.scores if s.mode == "lora"],
        candidates=[replace(c, mode=m) for m in modes for c in run.candidates if c.mode == "lora"],
        similarity=dict.fromkeys(modes, run.similarity["lora"]),
    )
    figure, _ = draw.__wrapped__(Summary(many), name, layout)
    height = figure.get_size_inches()[1] * 72
    assert min(axis.get_position().height for axis in figure.axes) * height > 60
    if name in {"score_by_tasks", "coefficient"}:
        lines = [line for line in figure.axes[0].get_lines() if line.get_marker() not in ("", ".", "None")]
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(modes)
    if name == "similarity":
        titles = [a.get_title(loc="left") for a in figure.axes]
        room = layout.width / (1 if layout.narrow else 3)
        assert all(len(line) * 0.68 * layout.text < room for title in titles for line in title.split("\n"))


@pytest.mark.parametrize(("direction", "best"), [(1, [0.5]), (-1, [0.0])])
def test_the_best_coefficient_is_marked(direction, best):
    axis = Figure().subplots()
    curve = {("lora", "ties", "delta", ""): {0.0: 0.2, 0.5: 0.8, 1.0: 0.6}}
    coefficient._panel(axis, curve, [], ["lora"], direction, [{}])
    marked = [line for line in axis.get_lines() if line.get_marker() not in ("None", "")]
    assert [line.get_xdata()[0] for line in marked] == best
