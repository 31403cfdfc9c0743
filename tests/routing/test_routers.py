"""Routers: SMILE against its definition, Arrow against stock peft, what they refuse, and what they make."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from transformers import BertConfig, BertModel

import tangora
from routing.experts import expert, of_tiny
from tangora.adapters.adapter import Adapter, LoraDetails, Metadata, load
from tangora.config.settings import FinetuneConfig
from tangora.errors import AdapterError, ArgumentError, FusionError, ModelError, PluginError
from tangora.modes.contract import mode_of
from tangora.modes.loading import load_model
from tangora.modes.modular import with_tensors
from tangora.modular.network import attached
from tangora.modular.routed import routed_network
from tangora.routing.contract import RoutingBench, choose_of, summary_of
from tangora.routing.directions import leading_directions
from tangora.support.seams import MODES, ROUTERS
from tangora.tasks.model import TaskModel
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.updates.task_vector import Dense, LowRank

SITE = "encoder.layer.0.intermediate.dense"  # reads what is not normalized to the same length for every token


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def added(made: Adapter, x: torch.Tensor, site: str = SITE) -> torch.Tensor:
    """What a routed adapter adds to the output of a site."""
    network = with_tensors(routed_network(made.metadata.modules), made)
    settings = network.settings.sites[site]
    return network.sites.at(site)(x, network.gate(settings.gate)(x))


@pytest.fixture(scope="module")
def inputs():
    return 2 * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("top_k", "gate_rank"), [(1, 4), (2, 1), (2, 2), (3, 4)])
def test_smile_weighs_by_the_norm_of_the_projection(inputs, top_k, gate_rank):
    experts = of_tiny(1, 2, 3, ranks=(1, 2, 3))
    made = tangora.route(experts, "smile", top_k=top_k, gate_rank=gate_rank)
    expected = torch.zeros(3, 5, 32, dtype=torch.float64)
    changes = [e.updates[SITE].dense().double() for e in experts]
    for sample in range(3):
        for token in range(5):
            x = inputs[sample, token].double()
            scores = []
            for change in changes:
                _, values, right = torch.linalg.svd(change)
                kept = min(gate_rank, int((values > 1e-5).sum()))
                scores.append(float((right[:kept] @ x).norm()))
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            places = weights.argsort(descending=True)[:top_k]
            share = weights[places] / weights[places].sum()
            expected[sample, token] = sum(w * changes[int(i)] @ x for w, i in zip(share, places, strict=True))
    close(added(made, inputs), expected.float())


def test_smile_may_truncate_its_experts(inputs):
    experts = of_tiny(1, 2, ranks=(3, 2))
    made = tangora.route(experts, "smile", rank=1, top_k=2)
    assert made.metadata.modules["sites"][SITE]["ranks"] == [1, 1]
    smaller = [replace(e, updates={s: u.compress(1)[0] for s, u in e.updates.items()}) for e in experts]
    # the gate is of the whole experts, so that their directions are the same
    assert made.metadata.modules["gates"][SITE]["ranks"] == [3, 2]
    gates = {n: u for n, u in made.updates.items() if n.startswith("gates.")}
    again = tangora.route(smaller, "smile", top_k=2)
    same = replace(again, updates={**again.updates, **gates}, metadata=made.metadata)
    close(added(made, inputs), added(same, inputs))


def test_arrow_answers_as_stock_peft(tmp_path, inputs):
    config = BertConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval()
    folders = []
    for seed in (1, 2, 3, 4):
        made = expert(model, seed, 2, ("query",))
        # a large gap between the singular values, so that peft's power iteration converges to rounding: 4^-30 is left
        gap = {s: LowRank(u.b * torch.tensor([4.0, 1.0]), torch.linalg.qr(u.a.T)[0].T.contiguous(), u.scaling)
               for s, u in made.updates.items()}  # fmt: skip
        b = {s: LowRank(torch.linalg.qr(u.b)[0] * torch.tensor([4.0, 1.0]), u.a, 2.0) for s, u in gap.items()}
        settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query"]).to_dict() | {
            "target_modules": ["query"]
        }
        Adapter(b, Metadata(), LoraDetails(settings)).save(tmp_path / str(seed))
        folders.append(str(tmp_path / str(seed)))
    made = tangora.route(folders, "arrow", top_k=2, temperature=0.5)
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
    with attached(model, with_tensors(routed_network(made.metadata.modules), made)), torch.no_grad():
        own = model(input_ids=ids).last_hidden_state
    arrow = peft.ArrowConfig(top_k=2, router_temperature=0.5, rng_seed=0)
    stock = peft.create_arrow_model(model, folders, arrow).eval()
    with torch.no_grad():
        close(own, stock(input_ids=ids).last_hidden_state)


def test_a_direction_is_the_leading_one_with_a_fixed_sign():
    update = LowRank(torch.randn(6, 3), torch.randn(3, 5))
    rows = leading_directions(update, 2, 5)
    _, _, right = torch.linalg.svd(update.dense())
    torch.testing.assert_close(rows.abs(), right[:2].abs(), rtol=0, atol=1e-5)
    assert bool((rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())
    torch.testing.assert_close(leading_directions(LowRank(-update.b, update.a), 2, 5), rows)
    assert len(leading_directions(update, 9, 5)) == 3
    assert len(leading_directions(LowRank(torch.zeros(6, 3), update.a), 2, 5)) == 0
    assert leading_directions(None, 2, 5).shape == (0, 5)


@pytest.mark.parametrize("name", ROUTERS)
def test_an_expert_without_a_site_or_with_a_zero_update_scores_zero_there(name, inputs):
    if ROUTERS.get(name).needs != "nothing":
        pytest.skip("it learns from rows")
    one, two = of_tiny(1, 2)
    without = replace(two, updates={s: u for s, u in two.updates.items() if s != SITE})
    zero = replace(two, updates={**two.updates, SITE: LowRank(torch.zeros(32, 2), torch.ones(2, 16))})
    found = [added(tangora.route([one, other], name, top_k=2), inputs) for other in (without, zero)]
    close(*found)
    assert not torch.allclose(found[0], inputs @ one.updates[SITE].dense().T)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_keeps_its_promises(name, tmp_path):
    router = ROUTERS.get(name)
    assert router.name == name == router.settings.model_fields["name"].default
    assert summary_of(router).endswith(".")
    assert choose_of(router)
    if router.needs != "nothing":
        pytest.skip("it learns from rows")
    experts = of_tiny(1, 2, 3, ranks=(1, 2, 3))
    before = [e.fingerprint for e in experts]
    made, again = (tangora.route(experts, name) for _ in range(2))
    assert [e.fingerprint for e in experts] == before
    assert made.fingerprint == again.fingerprint
    info = made.metadata.fused
    assert (info.method, [p.name for p in info.parents]) == (name, ["task1", "task2", "task3"])
    assert [p.fingerprint for p in info.parents] == before
    assert info.parameters == router.settings().model_dump(mode="json", exclude={"name"})
    assert (made.metadata.kind, made.metadata.train) == ("routed", "routed")
    made.save(tmp_path / "routed")
    assert load(tmp_path / "routed").fingerprint == made.fingerprint
    assert load(tmp_path / "routed").metadata == made.metadata


def test_settings_are_part_of_what_an_adapter_is():
    experts = of_tiny(1, 2, 3)
    one, two = (tangora.route(experts, "arrow", top_k=k) for k in (1, 2))
    assert one.fingerprint != two.fingerprint
    assert all(torch.equal(one.updates[n].dense(), two.updates[n].dense()) for n in one.updates)


def test_fuse_takes_a_router_as_a_method():
    experts = of_tiny(1, 2)
    assert tangora.fuse(experts, "smile", top_k=2).fingerprint == tangora.route(experts, "smile", top_k=2).fingerprint
    for key, value in {"weights": 0.3, "rank": 2, "space": "core", "statistics": []}.items():
        with pytest.raises(ArgumentError, match=f"smile is a router.*{key}"):
            tangora.fuse(experts, "smile", **{key: value})
    with pytest.raises(
        ArgumentError, match=r"smile: unknown setting 'topk' at fuse. Did you mean 'top_k'\? Valid: top_k, "
    ):
        tangora.fuse(experts, "smile", topk=2)
    with pytest.raises(ArgumentError, match="greater than or equal to 1, got 0 at top_k"):
        tangora.fuse(experts, "smile", top_k=0)
    with pytest.raises(ArgumentError, match="smile: unknown setting 'name'"):
        tangora.route(experts, "smile", **{"name": "arrow"})
    assert not set(ROUTERS) & set(tangora.methods())
    with pytest.raises(PluginError, match=r"no such router, got 'smil'. Did you mean 'smile'\?"):
        tangora.route(experts, "smil")


def test_the_mode_answers_and_does_not_train():
    def made(base):
        return tangora.route(of_tiny(1, 2), "smile", top_k=2)

    check_mode(MODES.get("routed"), made=made)
    config = FinetuneConfig(train="routed")
    with pytest.raises(ModelError, match=r"made of experts, not trained.*tangora fuse --method smile"):
        mode_of(config).check(tiny_base(), config)


def test_the_network_of_a_folder_answers_as_it_is_scored(tmp_path):
    made, base, (task,) = tangora.route(of_tiny(1, 2), "arrow", top_k=1), tiny_base(), tiny_tasks(1)
    made.save(tmp_path / "routed")
    scores = tangora.evaluate(tmp_path / "routed", base, task, progress=False)
    loaded = load_model(tmp_path / "routed", tiny_base().backbone)
    model = TaskModel(loaded, task, base).eval()
    from tangora.tasks.model import predict

    assert predict(model, task.splits["test"], 4).plain == scores[task.name].values


REFUSED = {
    "tangent": (lambda a: replace(a, metadata=a.metadata.model_copy(update={"linearize": "model", "train": "tangent"})),
                "tangent.*distill"),
    "dora": (lambda a: replace(a, metadata=a.metadata.model_copy(
        update={"base": a.metadata.base.model_copy(update={"adapted": "x"})})), "DoRA"),
    "full": (lambda a: Adapter({"w": Dense(torch.ones(2, 2))}, Metadata(kind="full", train="full")), "of kind full"),
    "dense": (lambda a: replace(a, updates={SITE: Dense(torch.ones(32, 16))}), "of full rank"),
    "bias": (lambda a: replace(a, updates={**a.updates, f"{SITE}.bias": Dense(torch.ones(32))}), "a bias"),
    "embedding": (lambda a: a.with_details(embeddings=frozenset([SITE])), "an embedding"),
    "convolution": (lambda a: a.with_details(kernels={SITE: (16, 1)}), "a convolution"),
    "whole": (lambda a: replace(a, whole={"norm.weight": torch.ones(3)}), "saved whole"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_expert_of_linear_layers_is_refused(name):
    change, message = REFUSED[name]
    for method in ("arrow", "smile"):
        with pytest.raises(FusionError, match=message):
            tangora.route([change(a) for a in of_tiny(1, 2)], method)


def test_experts_of_different_bases_and_widths_are_refused():
    one, two = of_tiny(1, 2)
    other = two.metadata.base.model_copy(update={"fingerprint": "f" * 64})
    with pytest.raises(FusionError, match="different bases"):
        tangora.route([one, replace(two, metadata=two.metadata.model_copy(update={"base": other}))])
    with pytest.raises(FusionError, match="the widths differ"):
        tangora.route([one, replace(two, updates={SITE: LowRank(torch.ones(3, 1), torch.ones(1, 2))})])
    with pytest.raises(FusionError, match="adds modules"):
        tangora.route([tangora.route([one, two])])


def test_files_that_do_not_fit_their_settings_are_refused(tmp_path):
    made = tangora.route(of_tiny(1, 2))
    modules = {**made.metadata.modules, "experts": ["one"]}
    broken = replace(made, metadata=made.metadata.model_copy(update={"modules": modules}))
    with pytest.raises(AdapterError, match="2 ranks for 1 experts"):
        routed_network(broken.metadata.modules)
    fewer = replace(made, updates=dict(list(made.updates.items())[1:]))
    with pytest.raises(AdapterError, match="does not fit the modules"):
        with_tensors(routed_network(fewer.metadata.modules), fewer)


def test_a_router_that_learns_needs_rows(monkeypatch):
    class Learns(type(ROUTERS.get("smile"))):
        """Counts the rows."""

        needs = "rows"
        seen = None

        def __call__(self, experts, settings, bench=None):
            type(self).seen = bench
            return super().__call__(experts, settings)

    base, tasks = tiny_base(), tiny_tasks(2)
    monkeypatch.setitem(ROUTERS._members, "learns", Learns())
    monkeypatch.setattr(Learns, "settings", ROUTERS.get("smile").settings)
    experts = of_tiny(1, 2)
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.routed import routed

    settings = ROUTERS.get("smile").settings()
    monkeypatch.setitem(ROUTERS._members, "smile", Learns())
    with pytest.raises(ArgumentError, match="learns from rows of the tasks"):
        routed(Fusion(experts), settings)
    with pytest.raises(ArgumentError, match="rows need their base"):
        tangora.route(experts, "smile", tasks=tasks)
    tangora.route(experts, "smile", base=base, tasks=tasks, seed=4)
    assert isinstance(Learns.seen, RoutingBench)
    assert (Learns.seen.base, Learns.seen.tasks, Learns.seen.seed) == (base, tuple(tasks), 4)
    with pytest.raises(ModelError, match="made for other base weights"):
        tangora.route([replace(e, metadata=e.metadata.model_copy(update={
            "base": e.metadata.base.model_copy(update={"fingerprint": "0" * 64})})) for e in experts],
            "smile", base=base, tasks=tasks)  # fmt: skip


def sharing(rank):
    """Two experts with one A, as L-LoRA trains them."""
    one, two = of_tiny(1, 2, ranks=(rank, rank))
    updates = {s: LowRank(u.b, one.updates[s].a, u.scaling) for s, u in two.updates.items()}
    return [one, replace(two, updates=updates)]


def test_experts_that_no_input_tells_apart_are_refused():
    """With one A of rank r, r directions of every expert span the same space: scores are equal up to rounding."""
    with pytest.raises(FusionError, match=r"same 2 input directions, so that no input decides.*gate_rank below"):
        tangora.route(sharing(2), "smile")
    with pytest.raises(FusionError, match="same 1 input directions"):
        tangora.route(sharing(1), "arrow", top_k=1)
    rows = 2 * torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(4))
    for made in (tangora.route(sharing(2), "smile", gate_rank=1), tangora.route(sharing(2), "arrow", top_k=1)):
        close(torch.cat([added(made, row[None]) for row in rows]), added(made, rows))


def test_experts_that_all_answer_need_no_decision(inputs):
    one, two = sharing(2)
    mean = (one.updates[SITE].dense() + two.updates[SITE].dense()) / 2
    close(added(tangora.route([one, two], "smile", top_k=2), inputs), inputs @ mean.T)
