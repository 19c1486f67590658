"""Sentences on configs that are valid and may surprise."""

from __future__ import annotations

import re

from experiments.configs.resolve import changed
from experiments.runs.remarks import remarks
from tests.helpers import tiny


def test_a_warm_up_that_takes_up_all_of_the_training_is_remarked_with_a_remedy_that_works() -> None:
    config = tiny(optim={"warmup_epochs": 2}, train={"epochs": 2})
    (text,) = remarks(config)
    assert "the learning rate rises until training ends" in text
    (remedy,) = re.findall(r"--set optim.warmup_epochs=(\S+)$", text)
    assert remarks(changed(config, {"optim.warmup_epochs": float(remedy)})) == []
    assert remarks(changed(config, {"train.epochs": 3})) == []
