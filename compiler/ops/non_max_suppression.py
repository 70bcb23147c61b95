"""regraft::non_max_suppression: which boxes to keep, as ONNX's NonMaxSuppression.

    boxes [batch, boxes, 4]   scores [batch, classes, boxes]   ->   [kept, 3] int64: batch, class, box

For every batch item and class, boxes with scores above `score_threshold` are taken from the highest score down, each
unless it overlaps one taken before by more than `iou_threshold` (intersection over union), up to `most` of them. Of
equal scores the lower index comes first. The three limits are tensors of one number; without `most` nothing is kept.
Boxes are two opposite corners y, x, y, x, or with `center_point` x center, y center, width, height.

Source: ONNX NonMaxSuppression, opset 11.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCHEMA = """(
    Tensor boxes, Tensor scores, Tensor? most, Tensor? iou_threshold, Tensor? score_threshold, bool center_point
) -> Tensor"""


@torch.library.custom_op("regraft::non_max_suppression", mutates_args=(), schema=SCHEMA)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None,
    iou_threshold: Tensor | None,
    score_threshold: Tensor | None,
    center_point: bool,
) -> Tensor:
    """The selection as the module's docstring defines it."""
    limit = 0 if most is None else int(most)
    threshold = 0.0 if iou_threshold is None else float(iou_threshold)
    kept = []
    for item, corners in enumerate(_corners(boxes, center_point)):
        overlaps = _overlaps(corners) > threshold if limit > 0 else None
        for group, score in enumerate(scores[item]):
            order = torch.sort(score, descending=True, stable=True).indices
            if score_threshold is not None:
                order = order[score[order] > float(score_threshold)]
            taken: list[int] = []
            for box in order.tolist():
                if overlaps is None or len(taken) >= limit:
                    break
                if not overlaps[box, taken].any():
                    taken.append(box)
            kept += [(item, group, box) for box in taken]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


@non_max_suppression.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None,
    iou_threshold: Tensor | None,
    score_threshold: Tensor | None,
    center_point: bool,
) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, 3, dtype=torch.int64)


def _corners(boxes: Tensor, center_point: bool) -> Tensor:
    """The lower corner and the upper one of every box."""
    if center_point:
        return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    return torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def _overlaps(corners: Tensor) -> Tensor:
    """[boxes, boxes]: intersection over union; 0 for boxes without an area."""
    areas = (corners[:, 2:] - corners[:, :2]).prod(-1)
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = areas[:, None] + areas[None] - shared
    valid = (shared > 0) & (areas[:, None] > 0) & (areas[None] > 0) & (union > 0)
    return torch.where(valid, shared / union, -1.0)
