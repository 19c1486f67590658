"""Views: which augmentations an image goes through, and the two views of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from pydantic import Field, create_model
from torch import Tensor

from simclr.augment import AUGMENTATIONS, Params
from simclr.device import send
from simclr.randomness import uniforms
from simclr.settings import Section

if TYPE_CHECKING:
    AugmentConfig = Section
else:
    AugmentConfig = create_model(
        "AugmentConfig",
        __base__=Section,
        __doc__="What a view goes through: one table for each of AUGMENTATIONS (p = 0: absent). Defaults: the paper's.",
        **{name: (row.params, Field(default_factory=row.params)) for name, row in AUGMENTATIONS.items()},
    )


def pipeline(section: AugmentConfig) -> Pipeline:
    """The operations that a view goes through, in order, without the absent ones."""
    chosen: dict[str, Params] = {name: getattr(section, name) for name in AUGMENTATIONS}
    return {name: applied for name, params in chosen.items() if (applied := params.applied())}


Pipeline = dict[str, Params]  # name -> parameters, in the order of AUGMENTATIONS, without those of p = 0


def draw(pipeline: Pipeline, n: int, seed: int, step: int, view: int) -> dict[str, Tensor]:
    """The random numbers of one view of a batch of `n`: for each operation n x (1 + its draws), on the CPU.

    Each operation has a key of its own, so dropping one leaves the draws of the others as they were; the rows of a
    micro-batch are a slice of these.
    """
    return {name: uniforms((n, 1 + AUGMENTATIONS[name].draws), seed, "view", step, view, name) for name in pipeline}


def apply(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
    """One view: uint8 N x 3 x S x S -> float32 N x 3 x S x S in [0, 1]. The draws' rows are the images' rows."""
    out = images.float().div_(255)
    for name, params in pipeline.items():
        u = draws[name]
        chosen = (u[:, 0] < params.p).nonzero().squeeze(1)  # on the CPU: no wait for the accelerator
        function = AUGMENTATIONS[name].apply
        if len(chosen) == len(u):
            out = function(out, u[:, 1:], params)
        elif len(chosen):
            rows = send(chosen, out.device)
            out[rows] = function(out[rows], u[chosen, 1:], params)
    return out


Views = Callable[[slice], Tensor]  # both views of some rows of a batch, float 2 x n x 3 x S x S


def two_views(images: Tensor, pipelines: tuple[Pipeline, Pipeline], seed: int, step: int) -> Views:
    """Makes both views (2 x n x 3 x S x S) of any rows of a batch (uint8 N x 3 x S x S), by the step's random numbers.

    A row's views do not depend on which rows they are asked for with.
    """
    draws = [draw(ops, len(images), seed, step, view) for view, ops in enumerate(pipelines)]

    def views(rows: slice) -> Tensor:
        some, drawn = images[rows], [{name: u[rows] for name, u in one.items()} for one in draws]
        if pipelines[0] != pipelines[1]:
            return torch.stack([apply(some, *view) for view in zip(pipelines, drawn, strict=True)])
        both = {name: torch.cat([u, drawn[1][name]]) for name, u in drawn[0].items()}  # half the kernels to launch
        return apply(some.repeat(2, 1, 1, 1), pipelines[0], both).unflatten(0, (2, -1))  # type: ignore[no-any-return]

    return views
