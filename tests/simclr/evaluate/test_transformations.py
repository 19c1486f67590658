"""What features tell of transformations: of pixels, and of features that have lost them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simclr.augment import Noise
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.evaluations import check
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.transformations import TASKS, Transformations, transformed
from tests.helpers import subject_of


def test_pixels_tell_what_was_done_to_an_image(digits: Dataset) -> None:
    evaluation = Transformations(images=600, epochs=10)
    metrics = evaluation.run(subject_of(digits, layer="pixels")).metrics
    assert set(metrics) == {f"transformation_{task}" for task in TASKS}
    assert metrics["transformation_grey"] == pytest.approx(0.8, abs=0.06)  # digits are grey, so this is a guess
    assert metrics["transformation_turn"] > 0.7
    assert metrics["transformation_noise"] > 0.9
    assert metrics["transformation_sobel"] > 0.9
    assert metrics == evaluation.run(subject_of(digits, layer="pixels")).metrics


def test_images_are_transformed_as_their_classes_say() -> None:
    draw = torch.Generator().manual_seed(0)
    images, u = torch.rand(8, 3, 16, 16, generator=draw), torch.rand(8, 2, generator=draw)
    for task, shares in TASKS.items():
        classes = torch.arange(8) % len(shares)
        result = transformed(task, images, classes, u, Noise(sigma=0.3))
        assert torch.equal(result[classes == 0], images[classes == 0])
        assert all(
            (after != before).any() for after, before in zip(result[classes > 0], images[classes > 0], strict=True)
        )
    turned = transformed("turn", images, torch.full((8,), 3), u, Noise())
    assert torch.equal(turned, images.rot90(3, (-2, -1)))
    grey = transformed("grey", images, torch.ones(8, dtype=torch.long), u, Noise())
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_images_to_test_on_are_needed(digits: Dataset) -> None:
    bare = replace(digits, parts=digits.parts | {part: digits.parts[part][:0] for part in ("val", "test")})
    with pytest.raises(UserError, match="--transformations needs test or validation images"):
        check(subject_of(bare), ["transformations"])
    held = replace(digits, parts=digits.parts | {"test": digits.parts["test"][:0]})  # as on validation without any
    with pytest.raises(UserError, match="--transformations needs test or validation images"):
        check(replace(subject_of(held), protocol=Protocol(on="val")), ["transformations"])
