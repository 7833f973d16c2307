"""The losses of one prompt stage on cases small enough to work out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.training.losses import concept_loss, mask_loss
from tokenize_anything.training.region_losses import RegionTargets, region_losses

R, LOW, HIGH, D, K = 3, 4, 8, 5, 7
VOCABULARY = ConceptVocabulary.from_text_embeddings(
    [f"concept {index}" for index in range(K)],
    torch.randn(K, D, generator=torch.Generator().manual_seed(9)),
    logit_scale=5.0,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_outputs(**changes: Tensor) -> RegionOutputs:
    values: dict[str, Any] = dict(
        mask_logits=random(R, 4, LOW, LOW),
        iou_scores=random(R, 4, seed=1),
        mask_tokens=random(R, 4, 3),
        semantic_tokens=random(R, 4, 3),
        semantic_embeddings=random(R, 4, D, seed=2),
        mask_index=torch.zeros(R, dtype=torch.int64),
    )
    return RegionOutputs(**(values | changes))


def make_targets(**changes: Tensor) -> RegionTargets:
    values: dict[str, Any] = dict(
        masks=random(R, HIGH, HIGH, seed=3) > 0,
        has_mask=torch.ones(R, dtype=torch.bool),
        teacher=random(R, K, seed=4).log_softmax(dim=-1),
        has_text=torch.ones(R, dtype=torch.bool),
    )
    return RegionTargets(**(values | changes))


def pooled(mask: Tensor) -> Tensor:
    """(HIGH,HIGH) bool mask as shares of the cells of the logits."""
    step = HIGH // LOW
    cells = [[mask[y : y + step, x : x + step].float().mean() for x in range(0, HIGH, step)]
             for y in range(0, HIGH, step)]  # fmt: skip
    return torch.tensor(cells)


def plain_iou(logits: Tensor, mask: Tensor) -> float:
    predicted, truth = logits > 0, pooled(mask) > 0.5
    return float((predicted & truth).sum() / (predicted | truth).sum())


IS_BOX = torch.tensor([True, False, False])


def test_all_parts_equal_their_definition() -> None:
    outputs, targets = make_outputs(), make_targets()
    result = region_losses(outputs, targets, IS_BOX, VOCABULARY)
    slots = result.slot.tolist()
    expected: dict[str, list[float]] = {name: [] for name in ("mask", "iou", "concept", "mean_iou")}
    for row, slot in enumerate(slots):
        truth = targets.masks[row]
        logits = outputs.mask_logits[row, slot]
        expected["mask"].append(float(mask_loss(logits, pooled(truth))))
        ious = [plain_iou(outputs.mask_logits[row, s], truth) for s in range(4)]
        errors = [(float(outputs.iou_scores[row, s]) - ious[s]) ** 2 for s in range(4)]
        expected["iou"].append(sum(errors) / 4)
        expected["mean_iou"].append(ious[slot])
        student = VOCABULARY.log_probs(outputs.semantic_embeddings[row, slot])
        expected["concept"].append(float(concept_loss(student, targets.teacher[row])))
    for name, values in expected.items():
        assert float(getattr(result, name)) == pytest.approx(sum(values) / R, rel=1e-5), name


def test_the_dice_loss_has_its_weight() -> None:
    outputs, targets = make_outputs(), make_targets()
    every = torch.ones(R, dtype=torch.bool)  # boxes, so that the slot does not depend on it
    truth = torch.stack([pooled(mask) for mask in targets.masks])
    expected = mask_loss(outputs.mask_logits[:, 0], truth, dice_weight=5.0).mean()
    result = region_losses(outputs, targets, every, VOCABULARY, dice_weight=5.0)
    torch.testing.assert_close(result.mask, expected)


def test_a_click_supervises_the_slot_with_the_best_mask_and_a_box_slot_0() -> None:
    masks = torch.zeros(R, HIGH, HIGH, dtype=torch.bool)
    masks[:, 2:6, 0:4] = True
    right = (F.avg_pool2d(masks[:1].float(), 2) - 0.5) * 20
    logits = random(R, 4, LOW, LOW)
    logits[0, 2], logits[1, 3], logits[2, 0] = right[0], right[0], right[0]
    slots = region_losses(
        make_outputs(mask_logits=logits), make_targets(masks=masks), IS_BOX, VOCABULARY
    ).slot.tolist()
    assert slots[:2] == [0, 3]
    assert slots[2] != 0  # never slot 0 for a click, however good


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    masks = torch.zeros(R, HIGH, HIGH, dtype=torch.bool)
    masks[:, :, :4] = True
    logits = (F.avg_pool2d(masks.float(), 2) - 0.5).unsqueeze(1).expand(-1, 4, -1, -1) * 40
    embeddings = random(R, 1, D, seed=5).expand(-1, 4, -1)
    outputs = make_outputs(
        mask_logits=logits, iou_scores=torch.ones(R, 4), semantic_embeddings=embeddings
    )
    teacher = VOCABULARY.log_probs(embeddings[:, 0])
    result = region_losses(outputs, make_targets(masks=masks, teacher=teacher), IS_BOX, VOCABULARY)
    assert float(result.mean_iou) == 1
    assert float(result.iou) == 0
    assert float(result.concept) == pytest.approx(0, abs=1e-6)
    assert float(result.mask) < 0.05


@pytest.mark.parametrize("left_out", ["has_mask", "has_text"])
def test_regions_without_truth_are_left_out_of_its_means(left_out: str) -> None:
    keep = torch.tensor([True, False, True])
    targets = make_targets(**{left_out: keep})
    outputs = make_outputs()
    result = region_losses(outputs, targets, IS_BOX, VOCABULARY)
    rows = keep.nonzero()[:, 0]
    part = region_losses(
        RegionOutputs(
            **{f.name: getattr(outputs, f.name)[rows] for f in dataclasses.fields(outputs)}
        ),
        make_targets(
            **{
                name: getattr(targets, name)[rows]
                for name in ("masks", "has_mask", "teacher", "has_text")
            }
        ),
        IS_BOX[rows],
        VOCABULARY,
    )
    names = ("mask", "iou", "mean_iou") if left_out == "has_mask" else ("concept",)
    for name in ("mask", "iou", "mean_iou", "concept"):
        same = torch.isclose(getattr(result, name), getattr(part, name), rtol=1e-5)
        assert bool(same) == (name in names), name


def test_without_any_truth_the_losses_are_0() -> None:
    nothing = torch.zeros(R, dtype=torch.bool)
    result = region_losses(
        make_outputs(), make_targets(has_mask=nothing, has_text=nothing), IS_BOX, VOCABULARY
    )
    assert [float(v) for v in (result.mask, result.iou, result.concept, result.mean_iou)] == [0] * 4


def test_gradients_fall_on_the_supervised_slot_and_on_all_iou_scores() -> None:
    leaves = {
        name: getattr(make_outputs(), name).clone().requires_grad_()
        for name in ("mask_logits", "iou_scores", "semantic_embeddings")
    }
    result = region_losses(make_outputs(**leaves), make_targets(), IS_BOX, VOCABULARY)
    (result.mask + result.iou + result.concept).backward()
    supervised = F.one_hot(result.slot, 4).bool()
    for name in ("mask_logits", "semantic_embeddings"):
        grad = leaves[name].grad
        assert grad is not None
        assert torch.equal(grad.flatten(2).abs().sum(dim=-1) > 0, supervised), name
    assert leaves["iou_scores"].grad is not None
    assert (leaves["iou_scores"].grad != 0).all()


def test_low_precision_outputs_are_compared_in_float32() -> None:
    low = {
        "mask_logits": random(R, 4, LOW, LOW).bfloat16(),
        "semantic_embeddings": random(R, 4, D, seed=2).bfloat16(),
    }
    same = {name: value.float() for name, value in low.items()}
    results = [
        region_losses(make_outputs(**values), make_targets(), IS_BOX, VOCABULARY)
        for values in (low, same)
    ]
    for name in ("mask", "iou", "concept", "mean_iou", "slot"):
        left, right = (getattr(result, name) for result in results)
        assert torch.equal(left, right) and left.dtype == right.dtype, name


def test_parts_with_the_counts_of_the_whole_add_up_to_it() -> None:
    has_mask, has_text = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    outputs, targets = make_outputs(), make_targets(has_mask=has_mask, has_text=has_text)
    whole = region_losses(outputs, targets, IS_BOX, VOCABULARY)
    counts = {"mask_count": has_mask.sum(), "text_count": has_text.sum()}
    parts = [
        region_losses(
            make_outputs(
                **{f.name: getattr(outputs, f.name)[rows] for f in dataclasses.fields(outputs)}
            ),
            make_targets(
                **{name: getattr(targets, name)[rows]
                   for name in ("masks", "has_mask", "teacher", "has_text")},
                **counts,
            ),
            IS_BOX[rows],
            VOCABULARY,
        )
        for rows in (torch.tensor([0]), torch.tensor([1, 2]))
    ]  # fmt: skip
    for name in ("mask", "iou", "concept", "mean_iou"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name), msg=name)


def test_features_are_compared_by_their_angle_and_none_costs_nothing() -> None:
    outputs, every = make_outputs(), torch.ones(R, dtype=torch.bool)
    features = random(R, D, seed=6)
    targets = make_targets(teacher=features)
    result = region_losses(outputs, targets, every, None, concept_loss="feature")
    expected = [
        1 - float(a @ b / (a.norm() * b.norm()))
        for a, b in zip(outputs.semantic_embeddings[:, 0], features, strict=True)
    ]
    assert float(result.concept) == pytest.approx(sum(expected) / R, rel=1e-5)
    assert float(region_losses(outputs, targets, every, None, concept_loss="none").concept) == 0
