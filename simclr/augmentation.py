"""What an augmentation is, and the ranges of its parameters."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from torch import Tensor

from simclr.settings import Pair, Section


def _check_order(pair: Range) -> Range:
    if pair[0] > pair[1]:
        raise ValueError(f"the first value must not exceed the second, got {list(pair)}")
    return pair


Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Aspect = Annotated[float, Field(ge=0.1, le=10)]  # of the largest box in an image of 8 px, no side rounds to 0
Sigma = Annotated[float, Field(ge=0.01, le=1024)]  # pixels, up to the largest side; near 0, float32 would give nan
Factor = Annotated[float, Field(ge=0, le=100)]  # with more, every pixel is black or white
FractionRange = Annotated[Pair[Fraction], AfterValidator(_check_order)]
AspectRange = Annotated[Pair[Aspect], AfterValidator(_check_order)]
SigmaRange = Annotated[Pair[Sigma], AfterValidator(_check_order)]


class Augmentation(Section):
    """An augmentation and its parameters. An image is augmented with probability `p`, so p = 0 switches it off.

    Calling it is deterministic, because all randomness is in the uniform numbers that it is given.
    """

    draws: ClassVar[int] = 0  # uniform numbers that each image needs
    shared: ClassVar[bool] = False  # whether both views of an image get the same numbers
    p: Probability = 0.0  # probability that an image is augmented

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Augment float32 images (N x 3 x H x W in [0, 1]), which may be overwritten.

        `u` (N x draws, on the CPU) holds uniform numbers in [0, 1), which become the parameters of each image.
        """
        raise NotImplementedError

    def as_applied(self) -> Augmentation | None:
        """The augmentation that a view applies for these parameters, or None if it applies nothing."""
        return self if self.p > 0 else None
