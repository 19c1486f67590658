"""Views: the augmentations that an image goes through, and the two views of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from pydantic import Field, create_model
from torch import Tensor

from simclr.augment import AUGMENTATIONS, Augmentation, Crop
from simclr.device import send
from simclr.randomness import uniforms
from simclr.settings import Section

if TYPE_CHECKING:

    class AugmentConfig(Section):
        """The settings of a view, as far as they are read by name."""

        crop: Crop = Crop()
else:
    AugmentConfig = create_model(
        "AugmentConfig",
        __base__=Section,
        __doc__="The settings of a view: one table for each augmentation. The defaults are the paper's.",
        **{name: (kind, Field(default_factory=kind)) for name, kind in AUGMENTATIONS.items()},
    )

Pipeline = dict[str, Augmentation]  # the augmentations that a view applies, by name, in the order of AUGMENTATIONS


def pipeline(section: AugmentConfig) -> Pipeline:
    """The augmentations that a view applies, in order."""
    chosen: dict[str, Augmentation] = {name: getattr(section, name) for name in AUGMENTATIONS}
    return {name: applied for name, augmentation in chosen.items() if (applied := augmentation.as_applied())}


def draw(pipeline: Pipeline, n: int, seed: int, step: int, view: int) -> dict[str, Tensor]:
    """The random numbers for one view of a batch: n x (1 + draws) for each augmentation, on the CPU.

    Each augmentation has its own key, so removing one does not change the numbers of the others. A micro-batch uses its
    rows of these tensors. Those of a `shared` augmentation don't depend on the view.
    """
    return {
        name: uniforms((n, 1 + each.draws), seed, "view", step, 0 if each.shared else view, name)
        for name, each in pipeline.items()
    }


def apply(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
    """Make one view: uint8 N x 3 x S x S -> float32 N x 3 x S x S in [0, 1]. Row i of `draws` belongs to image i."""
    out = images.float().div_(255)
    for name, augmentation in pipeline.items():
        u = draws[name]
        chosen = (u[:, 0] < augmentation.p).nonzero().squeeze(1)  # on the CPU, so nothing waits for the accelerator
        if len(chosen) == len(u):
            out = augmentation(out, u[:, 1:])
        elif len(chosen):
            rows = send(chosen, out.device)
            out[rows] = augmentation(out[rows], u[chosen, 1:])
    return out


Views = Callable[[slice], Tensor]  # makes both views of some rows of a batch, float32 2 x n x 3 x S x S


def two_views(images: Tensor, pipelines: tuple[Pipeline, Pipeline], seed: int, step: int) -> Views:
    """A function that makes both views of any rows of a batch (uint8 N x 3 x S x S), with the step's random numbers.

    The views of a row do not depend on which other rows are made in the same call.
    """
    draws = [draw(ops, len(images), seed, step, view) for view, ops in enumerate(pipelines)]

    def views(rows: slice) -> Tensor:
        some, drawn = images[rows], [{name: u[rows] for name, u in one.items()} for one in draws]
        if pipelines[0] != pipelines[1]:
            return torch.stack([apply(some, *view) for view in zip(pipelines, drawn, strict=True)])
        # Equal pipelines process both views at once, which launches half as many kernels.
        both = {name: torch.cat([u, drawn[1][name]]) for name, u in drawn[0].items()}
        return apply(some.repeat(2, 1, 1, 1), pipelines[0], both).unflatten(0, (2, -1))  # type: ignore[no-any-return]

    return views
