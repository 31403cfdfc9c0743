"""Routers: experts and, for every token or sample, how much of each answers.

    experts (Adapters) ── a router (`tangora.routing.routers`) ──▶ a routed Adapter ── mode ``routed`` ──▶ answers

- `tangora.route` applies a router to adapters or their folders; ``tangora.fuse(..., method="smile")`` does so too.
- `tangora.routing.contract`: what a router is, and how another package adds one.
- `tangora.routing.assembly`: experts and gates as one adapter, for whoever writes a router.

The experts stay what they are; nothing is averaged. So a routed adapter is larger than a fused one, by the number of
experts, and no plain peft adapter: it answers by `tangora.load_model`, `tangora.predictor` and the commands.
"""
