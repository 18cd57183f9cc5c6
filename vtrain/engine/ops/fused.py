"""Fused optimizer steps: refused, since they hide a sequence that torch's own unfused form spells out."""

from __future__ import annotations

from vtrain.engine.optable import forbid

forbid(
    "a fused optimizer step; construct the optimizer with fused=False (its default form is covered)",
    "_fused_adam_.default _fused_adamw_.default _fused_sgd_.default _fused_adagrad_.default _fused_adam_.tensor_lr "
    "_fused_adamw_.tensor_lr _fused_sgd_.tensor_lr".split(),
)
