"""What a user may not expect of a config that is valid."""

from __future__ import annotations

from simclr.config import Config
from simclr.methods import METHODS


def remarks(config: Config) -> list[str]:
    """Sentences on a head that differs from the published one, and on a learning rate that never falls."""
    epochs, warmup = config.train.epochs, config.optim.warmup_epochs
    rising = (
        f"the learning rate rises until training ends, because optim.warmup_epochs = {warmup:g} takes up all of "
        f"train.epochs = {epochs}: train for longer, or add --set optim.warmup_epochs={epochs / 10:g}"
    )
    return [text for text in (METHODS[config.method].remark(config.model), rising * (warmup >= epochs)) if text]
