"""The kinds of adapters in peft other than LoRA, by the ``peft_type`` of their files.

A kind that is not listed, of a newer peft or registered by a plug-in, is read like the others if it can be merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KNOWN", "REFUSED", "Tuner", "article", "tuner_of"]


@dataclass(frozen=True)
class Tuner:
    """A kind of adapter that changes weights.

    Attributes:
        title: its name.
        stem: how the names of its tensors and of its layers' attributes begin.
        starts_from_base: whether peft computes a part of it, such as an SVD, from the base's weights on loading. Then
            these are needed before the file can be loaded, all of them at once.
    """

    title: str
    stem: str
    starts_from_base: bool = False


KNOWN: Mapping[str, Tuner] = {
    "ADALORA": Tuner("AdaLoRA", "lora_"),
    "ADAMSS": Tuner("AdaMSS", "adamss_", starts_from_base=True),
    "BEFT": Tuner("BEFT", "beft_"),
    "BOFT": Tuner("BOFT", "boft_"),
    "C3A": Tuner("C3A", "c3a_"),
    "DEFT": Tuner("DEFT", "deft_"),
    "DELORA": Tuner("DeLoRA", "delora_"),
    "FOURIERFT": Tuner("FourierFT", "fourierft_"),
    "FROD": Tuner("FRoD", "frod_", starts_from_base=True),
    "GLORA": Tuner("GLoRA", "glora_"),
    "GRALORA": Tuner("GraLoRA", "gralora_"),
    "HIRA": Tuner("HiRA", "hira_"),
    "HRA": Tuner("HRA", "hra_"),
    "IA3": Tuner("IA³", "ia3_"),
    "LN_TUNING": Tuner("LN tuning", "ln_tuning_"),
    "LOHA": Tuner("LoHa", "hada_"),
    "LOKR": Tuner("LoKr", "lokr_"),
    "MISS": Tuner("MiSS", "miss_"),
    "OFT": Tuner("OFT", "oft_"),
    "OSF": Tuner("OSF", "osf_", starts_from_base=True),
    "PEANUT": Tuner("PEANuT", "peanut_"),
    "PSOFT": Tuner("PSOFT", "psoft_", starts_from_base=True),
    "PVERA": Tuner("PVeRA", "pvera_"),
    "RANDLORA": Tuner("RandLora", "randlora_"),
    "ROAD": Tuner("RoAd", "road_"),
    "SHIRA": Tuner("SHiRA", "shira_"),
    "SUPERTUNING": Tuner("SuperTuning", "supertuning_"),
    "TINYLORA": Tuner("TinyLoRA", "tinylora_", starts_from_base=True),
    "TRAINABLE_TOKENS": Tuner("trainable tokens", "trainable_tokens_"),
    "UNILORA": Tuner("Uni-LoRA", "unilora_"),
    "VBLORA": Tuner("VB-LoRA", "vblora_"),
    "VERA": Tuner("VeRA", "vera_"),
    "WAVEFT": Tuner("WaveFT", "waveft_"),
}
"""peft_type -> the kind."""

_TOKENS = "puts trained vectors before the input, and changes no weight"
_CACHE = "puts trained keys and values into the attention's cache, and changes no weight"

REFUSED: Mapping[str, tuple[str, str]] = {
    "ADAPTION_PROMPT": ("adaption prompt", "adds gated attention to trained vectors, and changes no weight"),
    "BONE": ("Bone", "is no longer in peft, which has a script that converts it to MiSS"),
    "CARTRIDGE": ("Cartridge", _CACHE),
    "CPT": ("CPT", _TOKENS),
    "LILY": ("Lily", "weights its matrices by each input, so it is no change of a weight"),
    "MULTITASK_PROMPT_TUNING": ("multitask prompt tuning", _TOKENS),
    "POLY": ("Poly", "mixes its matrices by the task of each input, so it is no change of a weight"),
    "PREFIX_TUNING": ("prefix tuning", _CACHE),
    "PROMPT_TUNING": ("prompt tuning", _TOKENS),
    "P_TUNING": ("p-tuning", _TOKENS),
    "SHADOW": ("Shadow", "runs a second network beside the base, and changes no weight"),
    "XLORA": ("X-LoRA", "weights its adapters by each input, so it is no change of a weight"),
}
"""peft_type -> the kind's name, and why it is refused."""


def tuner_of(kind: str) -> Tuner:
    """Return a kind that is not refused; what is not known of a new one is assumed for the worst.

    >>> tuner_of("LOHA").title, tuner_of("NEW_KIND").stem
    ('LoHa', 'new_')
    """
    return KNOWN.get(kind) or Tuner(kind, _stem(kind), starts_from_base=True)


def _stem(kind: str) -> str:
    """Return how the names of a new kind's tensors begin, as peft has registered it."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING  # deferred: it takes seconds to import

    prefixes = {str(key.value): str(prefix) for key, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items()}
    return prefixes.get(kind, f"{kind.lower()}_").partition("_")[0] + "_"


def article(title: str) -> str:
    """Return a kind with its indefinite article, as it is read aloud.

    >>> article("LoHa"), article("IA³"), article("OFT"), article("FourierFT"), article("HRA")
    ('a LoHa', 'an IA³', 'an OFT', 'a FourierFT', 'an HRA')
    """
    spelled = len(title) > 1 and title[:2].isupper()  # letter by letter, where F, H, L, M, N, R, S and X begin with e
    vowel = title[0] in ("AEFHILMNORSX" if spelled and title not in ("RoAd",) else "AEIOaeio")
    return f"{'an' if vowel else 'a'} {title}"
