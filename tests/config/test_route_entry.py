"""An entry of ``fusion.methods`` whose method is a router."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tangora.config.fusion import FusionEntry
from tangora.routing.routers.arrow import ArrowSettings
from tangora.routing.routers.smile import SmileSettings


def test_a_router_is_named_as_a_method():
    entry = FusionEntry(method="smile")
    assert (entry.route, entry.label) == (SmileSettings(), "smile")
    assert FusionEntry(method="arrow", route={"top_k": 2}).route == ArrowSettings(top_k=2)
    assert FusionEntry(method="arrow", top_k=2, name="two").route == ArrowSettings(top_k=2)
    assert FusionEntry(method="arrow", route={"top_k": 2}, temperature=0.5).route.temperature == 0.5
    assert FusionEntry(method="arrow", name="two").label == "two"


def test_a_resolved_entry_is_read_again():
    for entry in (FusionEntry(method="arrow", top_k=2), FusionEntry(method="ties")):
        assert FusionEntry.model_validate(entry.model_dump(mode="json")) == entry
        assert FusionEntry.model_validate(entry.model_dump()) == entry
    assert FusionEntry(method="arrow", route=ArrowSettings(top_k=2)).route.top_k == 2
    assert FusionEntry(method="ties").route is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"method": "ties", "route": {"top_k": 2}}, "'ties' is none. Routers: "),
        ({"method": "smile", "route": "arrow"}, "route is a table of settings"),
        ({"method": "smile", "route": {"name": "arrow"}}, "the method is smile, and route is of arrow"),
        ({"method": "smile", "route": {"topk": 2}}, "unknown key 'topk'. Did you mean 'top_k'"),
        ({"method": "smile", "topk": 2}, "unknown key 'topk'. Did you mean 'top_k'"),
        ({"method": "smile", "temperature": 2}, "unknown key 'temperature'"),
        ({"method": "smile", "top_k": 0}, "greater than or equal to 1"),
        ({"method": "smile", "weights": 0.3}, "smile is a router, and nothing is fused: leave out weights"),
        ({"method": "smile", "parameters": {"density": 0.3}}, "leave out parameters"),
        ({"method": "smile", "search": "convex"}, "leave out search"),
        ({"method": "smile", "polish": {"rank": 2}}, "leave out polish"),
        ({"method": "smile", "spaces": ["core"]}, "leave out spaces"),
        ({"method": "smile", "labels": 3}, "labels is not a setting of router smile"),
    ],
)
def test_what_does_not_go_together_is_refused(raw, message):
    with pytest.raises(ValidationError) as found:
        FusionEntry.model_validate(raw)
    assert message in str(found.value)
