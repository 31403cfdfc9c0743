"""Keys of scored candidates: equal ones share one, and changed code has another."""

from __future__ import annotations

import importlib
import sys

from tangora.evaluation.candidates import candidate_key
from tangora.fusion.fusion import Fusion
from tangora.support import source
from toys import lora

METHOD = '''
from tangora.methods import fusion_method


@fusion_method("third_party_first", granularity="element", reference="none", default_weight=1.0)
def first(deltas, *, weights):
    """{prose}"""
    return weights[0] * deltas[0] * {factor}
'''


def test_a_score_is_not_reused_after_a_third_party_s_method_changed(tmp_path, monkeypatch):
    from tangora.methods import _registry

    fusion = Fusion([lora(1), lora(2)])
    monkeypatch.syspath_prepend(str(tmp_path))

    def key(prose, factor):
        for kept in (source._read, source._file, source._closure):
            kept.cache_clear()
        (tmp_path / "third_party.py").write_text(METHOD.format(prose=prose, factor=factor))
        sys.modules.pop("third_party", None)
        importlib.invalidate_caches()
        importlib.import_module("third_party")
        return candidate_key(fusion, "third_party_first", [0.5, 0.5], {}, 0)

    try:
        before = key("Take the first.", 1.0)
        assert key("Take only the first adapter.", 1.0) == before
        assert key("Take the first.", 2.0) != before
        assert key("Take the first.", 1.0) == before
    finally:
        _registry._METHODS.pop("third_party_first", None)
        sys.modules.pop("third_party", None)
