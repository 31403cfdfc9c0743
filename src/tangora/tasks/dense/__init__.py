"""Dense vision: a class, a mark or a number for every pixel, by a trained decoder on the stages of a backbone.

    image ── backbone ──▶ stages: features at falling resolutions
          └─ each: norm, linear to one width, upsampled ─▶ sum ─ GELU ─ linear ─ upsampled ─▶ logits of every pixel
    mask  ── the geometry of the image processor (`geometry`) ──▶ labels at the resolution of the model's input

The decoder is light, as in all-MLP decoders (arXiv:2105.15203), so that the backbone and its adapters do the work. It
is a readout with parameters: trained with an adapter, one for each task, and saved in ``heads/<task>.safetensors``.

A **problem** is what logits mean: ``segmentation`` (a class for every pixel; cross-entropy), ``binary`` (a mark, such
as edges or saliency; binary cross-entropy) or ``regression`` (a number, such as depth). Losses are means over the
pixels of a row that count. Scores are at the resolution of the model's input, not at that of the files.
"""
