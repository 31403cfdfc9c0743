"""Questions about images: the family `vision-language`.

    decoder ─┐
    vision ──┴─ backbone ──> one frozen network with both towers
    columns of a row ── rows ──> an image, a question or none, an answer
    image ──> pixels, question and answer ──> tokens, as of `tangora.tasks.language`     (once per run)
    batch ── readout of `tangora.tasks.language` ──> logits of the answers' tokens; answers by generation

Nothing connects the towers in the backbone: it answers from the text alone. An adapter's added modules do, such as
those of the mode ``ep-alm``: they read ``pixel_values`` from the arguments of the backbone's forward pass.
"""
