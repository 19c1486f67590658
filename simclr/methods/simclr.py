"""SimCLR: two views of each image, contrasted by NT-Xent."""

from __future__ import annotations

from pydantic import Field

from simclr.settings import Section


class LossConfig(Section):
    """NT-Xent."""

    temperature: float = Field(0.5, ge=0.01, le=1000)
    normalize: bool = True  # cosine similarity; without it a plain dot product (paper, Table 5)
    include_self: bool = False  # leave each row's similarity to itself in the denominator: a mistake, reproducible
