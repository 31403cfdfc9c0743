"""Classification with trained heads: texts, pairs of texts, images and words, with one class, labels, or a number.

    backbone ── output ── read: pooler, cls, mean, tokens ──▶ features ── head ──▶ logits ── problem ──▶ losses, answers

Several tasks share a backbone, and each has its own **head**: the layers that the class of transformers for the task
puts behind the same backbone (`heads`), with the names that they have there. So ``heads/<task>.safetensors`` and the
head of a classifier's checkpoint have the same tensors, and give the same logits. What a head reads is shared by all
tasks of a base; the layers and their dropout are the task's. With ``layers: linear`` a head is one linear layer on
features that the settings name, for any architecture.

A head's values come from the first of these that has them (`base`, `tangora.tasks.fitting`):

1. the adapter that answers: a head trained with it, or one of ``modules_to_save`` that stock peft saved;
2. the base's checkpoint, if the task says ``head: checkpoint``, or the adapter has only a part of the head;
3. a new head: zeros in the last layer, so that an untrained head prefers no class, and drawn values before it.

A **problem** (`problems`) is what logits mean: one class of several (softmax, cross-entropy), any number of labels
(sigmoids, binary cross-entropy), or a number (squared error). Words have a class each (`words`): the first token of a
word carries its tag, and the others are ignored.

Targets are checked row by row (`targets`) before a model is loaded, and every error names the row.
"""
