"""The places where Tangora can be extended: one registry each. Members are imported when they are first used.

| registry | a member | contract |
| --- | --- | --- |
| `FAMILIES` | how rows become inputs of a model, and its features answers | `tangora.tasks.contract.Family` |
| `METRICS` | a score of predictions against targets | `tangora.tasks.contract.Metric` |
| `MODES` | a way to train an adapter, and to answer with it | `tangora.modes.contract.Mode` |
| `FORMATS` | the files of an adapter | `tangora.adapters.contract.Format` |
| `SPACES` | the coordinates in which adapters are fused | `tangora.fusion.contract.Space` |
| `SEARCHES` | where coefficients come from | `tangora.coefficients.contract.Search` |
| `ROUTERS` | how much of each expert answers for a token or a sample | `tangora.routing.contract.Router` |
| `EXECUTORS` | where the jobs of a run are done | `tangora.runs.contract.Executor` |

Fusion methods, the ninth kind, are functions with a decorator: see `tangora.methods`.

The packages are named by strings, since the layers that validate a recipe lie below those that carry it out.
"""

from __future__ import annotations

from tangora.support.registry import Registry

__all__ = ["EXECUTORS", "FAMILIES", "FORMATS", "METRICS", "MODES", "ROUTERS", "SEARCHES", "SPACES"]

FAMILIES = Registry("family", "tangora.tasks.families", "FAMILY", "tangora.tasks.contract:Family", "tangora.families")
METRICS = Registry("metric", "tangora.tasks.metrics", "METRIC", "tangora.tasks.contract:Metric", "tangora.metrics", "_")
MODES = Registry("mode", "tangora.modes.kinds", "MODE", "tangora.modes.contract:Mode", "tangora.modes")
FORMATS = Registry(
    "format", "tangora.adapters.formats", "FORMAT", "tangora.adapters.contract:Format", "tangora.formats"
)
SPACES = Registry("space", "tangora.fusion.spaces", "SPACE", "tangora.fusion.contract:Space", "tangora.spaces")
SEARCHES = Registry(
    "search", "tangora.coefficients.searches", "SEARCH", "tangora.coefficients.contract:Search", "tangora.searches"
)
ROUTERS = Registry("router", "tangora.routing.routers", "ROUTER", "tangora.routing.contract:Router", "tangora.routers")
EXECUTORS = Registry(
    "executor", "tangora.runs.executors", "EXECUTOR", "tangora.runs.contract:Executor", "tangora.executors"
)
