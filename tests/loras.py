"""LoRA adapters of tiny models as stock peft saves them, of any rank, on any layers, with random factors."""

from __future__ import annotations

from pathlib import Path

import torch


def peft_lora(
    base: Path, folder: Path, *, r=2, targets=("q_proj", "v_proj"), seed=0, bare=False, scale=0.3, name=None, **settings
):
    """Write an adapter of ``base``; ``bare`` adapts the model without its output layer, so that names lack a prefix.

    ``name`` is what the adapter calls its base; further settings are those of `peft.LoraConfig`.
    """
    import peft
    import transformers

    kind = transformers.AutoModel if bare else transformers.AutoModelForCausalLM
    config = peft.LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules=list(targets),
        task_type=None if bare else "CAUSAL_LM",
        **settings,
    )
    model = peft.get_peft_model(kind.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.copy_(scale * torch.randn(value.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = str(base) if name is None else name
    model.save_pretrained(folder)
    return folder
