"""eP-ALM (arXiv:2303.11403): [CLS] tokens of a frozen vision tower in the layers of a frozen decoder.

    pixels ── towers ──> v_1 ... v_k      [CLS] after the last k blocks, each through the tower's last layer norm
    v_i ── Connector i ──> C_i v_i        [batch, d_t]
    question ── decoders ──> [V | prompt | question]      one column for the visual token, n for the soft prompt
    before every layer l of the range     column V := C_i v_i,   i = ⌊(l - start) k / (end - start)⌋
    masks ──> V is hidden from layers before the range; it sees itself alone in all of them

The paper puts V in front of the hidden states when the range begins. Here the column is there from the first layer on,
and hidden from the others until then: the same function, and one length for all layers of a cache.
"""
