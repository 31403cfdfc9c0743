"""What a worker of a small run imports and reads, for a server to preload: each worker is a fork of it."""

from __future__ import annotations

import peft  # noqa: F401
from transformers import BertModel, BertTokenizer, Trainer, TrainingArguments  # noqa: F401

import tangora.adapters.saving
import tangora.adapters.survey
import tangora.modes.finetuning
import tangora.modes.kinds.lora
import tangora.modes.low_rank
import tangora.runs.context
import tangora.runs.execution
import tangora.runs.executors._worker
import tangora.runs.plan
import tangora.tasks.families.text_zero_shot
import tangora.tasks.zero_shot  # noqa: F401
from tangora.support.source import _closure

for name in ("tangora.runs.plan", "tangora.evaluation.evaluator", "tangora.report", "tangora.report.explorer"):
    _closure(name)
