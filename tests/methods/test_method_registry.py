"""The registry: records, look-ups, checks, third parties, the table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tangora
import tangora.methods as methods_module
from tangora.errors import ArgumentError, FusionError, PluginError
from tangora.methods import Limit, Method, _registry, fusion_method, get, methods, table


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))
    monkeypatch.setattr(_registry, "_LOADED", set(_registry._LOADED))


def mine(deltas: Tensor, *, weights: Tensor, power: float = 2.0, rounds: int = 3, exact: bool = False) -> Tensor:
    """Somebody's method."""
    return deltas.sum(0)


def register(function: Callable[..., Any] = mine, name: str = "mine", **options: Any) -> Callable[..., Any]:
    settings = {"granularity": "element", "reference": "none", "default_weight": 1} | options
    return fusion_method(name, **settings)(function)


def test_the_module_is_also_the_function() -> None:
    called = tangora.methods()
    assert called == methods() == methods_module()
    assert isinstance(tangora.methods, ModuleType)
    assert tangora.methods.get is get


def test_import_order_does_not_matter() -> None:
    """`tangora.methods` is bound by whichever import comes first; all of them must leave it callable."""
    code = """
import sys
for first in ("import tangora", "import tangora.methods", "from tangora.methods import get"):
    for name in [n for n in sys.modules if n.split(".")[0] == "tangora"]:
        del sys.modules[name]
    exec(first)
    import tangora
    from tangora.methods import ties
    assert "ties" in tangora.methods(), first
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mapping_is_sorted_and_read_only() -> None:
    known = methods()
    assert list(known) == sorted(known)
    with pytest.raises(TypeError):
        known["mine"] = known["ties"]  # type: ignore[index]


def test_record() -> None:
    record = get("ties")
    assert record.function is methods_module.ties
    assert (record.granularity, record.reference, record.default_weight) == ("model", "arXiv:2306.01708", 1.0)
    assert (record.linear, record.homogeneous, record.random) == (False, True, False)
    assert record.parameters == {"density": 0.2}
    assert record.summary.startswith("The mean of the updates' largest entries")
    with pytest.raises(AttributeError):
        record.linear = True  # type: ignore[misc]


def test_parameters_leave_out_what_the_engine_gives() -> None:
    assert get("dare").parameters == {"density": 0.5}
    assert get("dare").random
    assert get("average").parameters == {}


def test_decorator_returns_the_function() -> None:
    assert register() is mine
    assert get("mine").parameters == {"power": 2.0, "rounds": 3, "exact": False}
    assert get("mine").summary == "Somebody's method."
    assert get("mine").choose == ""


def test_unknown_method_names_the_nearest_and_all() -> None:
    with pytest.raises(PluginError, match=r"no such fusion method, got 'tie'.*'ties'.*average, breadcrumbs, cart, con"):
        get("tie")


@pytest.mark.parametrize("name", ["", "no such thing at all"])
def test_unknown_method_without_a_near_name(name: str) -> None:
    with pytest.raises(PluginError, match=r"Valid: average"):
        get(name)


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(PluginError, match=r"two fusion methods are called 'ties' at tangora.methods.ties.ties and"):
        register(name="ties")
    assert get("ties").function is methods_module.ties


def test_the_same_function_may_be_registered_again() -> None:
    register()
    register(default_weight=0.5)
    assert get("mine").default_weight == 0.5


def no_weights(deltas: Tensor) -> Tensor:
    return deltas


def undeclared_uniforms(deltas: Tensor, *, weights: Tensor, uniforms: Tensor) -> Tensor:
    return deltas


def two_positional(deltas: Tensor, density: float = 0.2, *, weights: Tensor) -> Tensor:
    return deltas


@pytest.mark.parametrize("function", [no_weights, undeclared_uniforms, two_positional])
def test_a_signature_that_is_not_the_contracts_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(PluginError, match=f"the signature is .*{function.__name__}"):
        register(function)


def test_a_parameter_without_a_default_is_refused() -> None:
    def bare(deltas: Tensor, *, weights: Tensor, density: float) -> Tensor:
        return deltas

    with pytest.raises(PluginError, match=r"parameters need defaults, got 'density'"):
        register(bare)


def test_unknown_granularity_is_refused() -> None:
    with pytest.raises(PluginError, match=r"mine: no such granularity, got 'layer' at .*mine.*element, tensor, model"):
        register(granularity="layer")


# --- check


@pytest.mark.parametrize("density", [0.2, 1, 1.0, 1e-9, np.float32(0.5), np.float64(0.5)])
def test_check_accepts(density: float) -> None:
    get("ties").check({"density": density})
    methods_module.ties(torch.ones(1, 4), weights=torch.ones(1, 1), density=density)


def test_check_accepts_nothing_given() -> None:
    for method in methods().values():
        method.check({})


def test_percent_is_answered_with_the_fraction() -> None:
    with pytest.raises(ArgumentError) as error:
        get("ties").check({"density": 20})
    assert str(error.value) == (
        "ties: density must be in (0, 1], got 20 at fuse.density. Densities are fractions: did you mean 0.20?"
    )


@pytest.mark.parametrize(("density", "hint"), [(5, "0.05"), (100, "1.00"), (12.5, "0.125"), (1.5, "0.015")])
def test_percent_hints(density: float, hint: str) -> None:
    with pytest.raises(ArgumentError, match=f"did you mean {hint}\\?"):
        get("dare").check({"density": density})


@pytest.mark.parametrize("density", [0, 0.0, -0.2, 200, float("nan"), float("inf"), float("-inf")])
def test_check_out_of_range(density: float) -> None:
    with pytest.raises(ArgumentError, match=r"must be in \(0, 1\].*Give the fraction of entries to keep, such as 0.2"):
        get("ties").check({"density": density})


@pytest.mark.parametrize("density", ["0.2", None, True, [0.2], {}])
def test_check_wrong_type(density: object) -> None:
    with pytest.raises(ArgumentError, match=r"ties: density must be a number, got .* at recipe.density"):
        get("ties").check({"density": density}, where="recipe")


@pytest.mark.parametrize("density", ["0.2", None, True])
def test_a_method_called_by_itself_checks_too(density: Any) -> None:
    with pytest.raises(ArgumentError, match=r"density must be a number"):
        methods_module.ties(torch.ones(1, 4), weights=torch.ones(1, 1), density=density)


def test_check_unknown_parameter() -> None:
    with pytest.raises(ArgumentError, match=r"ties: unknown parameter 'densty' at fuse. Did you mean 'density'"):
        get("ties").check({"densty": 0.2})


def test_check_parameter_of_a_method_without_any() -> None:
    with pytest.raises(ArgumentError, match=r"average: unknown parameter 'density' at fuse. It has no parameters"):
        get("average").check({"density": 0.2})


@pytest.mark.parametrize(("name", "value"), [("rounds", 2.5), ("rounds", True), ("exact", 1), ("power", "2")])
def test_check_types_of_other_parameters(name: str, value: object) -> None:
    register()
    get("mine").check({"power": 3, "rounds": np.int64(4), "exact": True})
    with pytest.raises(ArgumentError, match=f"mine: {name} must be"):
        get("mine").check({name: value})


def test_limits_of_other_parameters() -> None:
    register(limits={"power": Limit(low=0, high=4, open_high=True, fix="powers are small")})
    get("mine").check({"power": 0})
    with pytest.raises(ArgumentError, match=r"mine: power must be in \[0, 4\), got 4 at fuse.power. Powers are small"):
        get("mine").check({"power": 4})


def test_weights_and_uniforms_are_not_parameters() -> None:
    with pytest.raises(ArgumentError, match=r"unknown parameter 'uniforms'"):
        get("dare").check({"uniforms": 0.5})


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_number_of_tasks_that_the_method_cannot_fuse_is_refused(count: int) -> None:
    get("slerp").check_count(2)
    get("ties").check_count(count)
    with pytest.raises(FusionError, match=f"slerp fuses exactly 2, got {count} at here. Choose another method"):
        get("slerp").check_count(count, where="here")


# --- third parties


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str, str, str], metadata.EntryPoint]]:
    """Install a package of one module, as far as `importlib.metadata` can tell."""
    points: list[metadata.EntryPoint] = []
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [p for p in points if p.group == group]

    monkeypatch.setattr(metadata, "entry_points", entry_points)

    def installed(package: str, source: str, name: str, value: str) -> metadata.EntryPoint:
        (tmp_path / f"{package}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[tangora.methods]\n{name} = {value}\n", encoding="utf-8")
        (found,) = metadata.distribution(package).entry_points
        points.append(found)
        return found

    yield installed
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


ACME = """
from tangora.methods import fusion_method

@fusion_method("{name}", granularity="element", reference="none", default_weight=0.5, linear=True)
def largest(deltas, *, weights, floor: float = 0.0):
    '''The largest entry.

    Choose it for nothing
    in particular | ever.
    '''
    return (deltas * weights).max(0).values
"""


def test_a_third_party_method(install: Callable[..., Any]) -> None:
    install("acme_one", ACME.format(name="largest"), "largest", "acme_one:largest")
    assert "acme_one" not in sys.modules  # nothing is imported before it is asked for
    assert get("ties").name == "ties"
    assert "acme_one" not in sys.modules
    record = get("largest")
    assert record.parameters == {"floor": 0.0}
    assert record.function(torch.tensor([[1.0], [3.0]]), weights=torch.ones(2, 1)).tolist() == [3.0]
    assert "largest" in tangora.methods()
    assert "| `largest` | element | `floor=0.0` | 0.5 | none | for nothing in particular \\| ever |" in table()


def test_a_third_party_module_as_entry_point(install: Callable[..., Any]) -> None:
    install("acme_two", ACME.format(name="largest"), "largest", "acme_two")
    assert "largest" in methods()


def test_a_broken_package_is_named_and_stops_no_other(install: Callable[..., Any]) -> None:
    install("acme_broken", "import a_module_that_is_not_there", "largest", "acme_broken:largest")
    for _ in range(2):  # not only the first time
        with pytest.raises(PluginError, match=r"'largest' cannot be loaded .*a_module_that_is_not_there.*acme_broken"):
            methods()
    with pytest.raises(PluginError, match=r"acme_broken"):
        get("largest")
    assert get("ties").name == "ties"


def test_a_missing_function_is_named(install: Callable[..., Any]) -> None:
    install("acme_bare", "", "largest", "acme_bare:largest")
    with pytest.raises(PluginError, match=r"cannot be loaded .AttributeError.*acme_bare: largest = acme_bare:largest"):
        methods()


def test_an_entry_point_that_registers_nothing_of_its_name(install: Callable[..., Any]) -> None:
    install("acme_named", ACME.format(name="biggest"), "largest", "acme_named:largest")
    with pytest.raises(PluginError, match=r"registers no fusion method 'largest' at entry point acme_named"):
        methods()


def test_a_third_party_cannot_replace_a_method(install: Callable[..., Any]) -> None:
    install("acme_thief", ACME.format(name="ties"), "ties", "acme_thief:largest")
    with pytest.raises(PluginError, match=r"two fusion methods are called 'ties'.*acme_thief"):
        methods()
    assert get("ties").function is methods_module.ties


def test_two_third_parties_of_one_name(install: Callable[..., Any]) -> None:
    install("acme_first", ACME.format(name="largest"), "largest", "acme_first:largest")
    install("acme_second", ACME.format(name="largest"), "largest", "acme_second:largest")
    with pytest.raises(PluginError, match=r"two fusion methods are called 'largest'.*acme_first.*acme_second"):
        methods()


def test_an_entry_point_without_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("gone")

    point = SimpleNamespace(name="largest", value="acme", dist=None, load=load)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with pytest.raises(PluginError, match=r"entry point unknown: largest = acme"):
        methods()


# --- table


def test_table_has_a_row_for_every_method() -> None:
    lines = table().splitlines()
    assert lines[0].startswith("| method | granularity | parameters |")
    assert [line.split("`")[1] for line in lines[2:]] == list(methods())
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines)
    assert "[arXiv:2306.01708](https://arxiv.org/abs/2306.01708)" in table()


def test_types_of_the_public_names() -> None:
    assert isinstance(methods(), Mapping)
    assert all(isinstance(m, Method) for m in methods().values())
    assert set(methods_module.__all__) >= {"Method", "fusion_method", "get", "methods", "table"}
    assert all(hasattr(methods_module, name) for name in methods_module.__all__)


def chosen(deltas: Tensor, *, weights: Tensor, share: float = 0.2, cutoffs: list[float] | None = None) -> Tensor:
    """Somebody's method that keeps what is large."""
    return deltas.sum(0)


def test_a_cutoff_names_the_parameter_that_decides_it() -> None:
    register(chosen, cutoff="share", granularity="tensor")
    assert get("mine").cutoff == "share"
    assert dict(get("mine").parameters) == {"share": 0.2}


def dice(deltas: Tensor, *, weights: Tensor, uniforms: Tensor, keep: float = 0.2) -> Tensor:
    """Somebody's method that draws."""
    return deltas.sum(0)


def test_a_thinning_by_draws_has_a_density() -> None:
    with pytest.raises(PluginError, match="and draws, has a parameter density"):
        register(dice, granularity="element", random=True, after_thinning="sum")


@pytest.mark.parametrize(("function", "cutoff"), [(chosen, None), (chosen, "density"), (mine, "power")])
def test_a_cutoff_that_the_signature_does_not_have(function: Callable[..., Any], cutoff: str | None) -> None:
    with pytest.raises(PluginError, match="names the parameter that decides it, and takes cutoffs=None"):
        register(function, cutoff=cutoff, granularity="tensor")


def test_a_method_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys
from tangora.methods import get
assert get("task_arithmetic").coefficients([0.3, -1.0], {}) == [0.3, -1.0]
assert "torch" not in sys.modules
import tangora.methods.ties
assert get("ties").function is tangora.methods.ties
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stranger_takes_no_name_that_was_not_asked_for_yet() -> None:
    code = """
from tangora.errors import PluginError
from tangora.methods import fusion_method
try:
    @fusion_method("ties", granularity="element", reference="none", default_weight=1.0)
    def mine(deltas, *, weights): ...
except PluginError as error:
    assert "two fusion methods" in str(error)
else:
    raise SystemExit("it was taken")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
