from __future__ import annotations

from tangora.evaluation.candidates import candidate_key
from tangora.fusion.fusion import Fusion
from tangora.updates.task_vector import LowRank
from toys import lora


def test_nothing_added_is_the_base_model_only_where_b0_is_zero():
    made = [lora(seed) for seed in (1, 2)]
    assert candidate_key(Fusion(made), "task_arithmetic", [0.0, 0.0], {}, 0) == "zero_shot"
    start = {site: LowRank(u.b + 1.0, u.a, u.scaling) for site, u in (made[0].initial or {}).items()}
    moved = [adapter.with_details(initial=start) for adapter in made]
    key = candidate_key(Fusion(moved), "task_arithmetic", [0.0, 0.0], {}, 0)
    assert key != "zero_shot"
    assert key != candidate_key(Fusion(moved), "task_arithmetic", [1.0, 1.0], {}, 0)
