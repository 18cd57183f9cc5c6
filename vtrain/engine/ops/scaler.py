"""What ``torch.amp.GradScaler`` does beyond plain operations (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtrain.engine.optable import composed

Tensor = torch.Tensor


@composed("_amp_foreach_non_finite_check_and_unscale_.default")
def unscale(gradients: Sequence[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:
    """Each gradient times the inverse of the scale; found_inf becomes 1 where one is infinite or NaN."""
    for g in gradients:
        finite = g.isfinite().all()
        found_inf.copy_(torch.where(finite, found_inf, torch.ones_like(found_inf)))
        g.mul_(inverse_scale)


@composed("_amp_update_scale_.default")
def update_scale(
    scale: Tensor, tracker: Tensor, found_inf: Tensor, growth_factor: float, backoff_factor: float, growth_interval: int
) -> Tensor:
    """The scale times the backoff after an overflow; after so many steps without times the growth, if finite."""
    if bool(found_inf):
        scale.mul_(backoff_factor)
        tracker.zero_()
        return scale
    tracker.add_(1)
    if int(tracker) == growth_interval:
        grown = scale * growth_factor
        scale.copy_(torch.where(grown.isfinite(), grown, scale))
        tracker.zero_()
    return scale
