"""Cells at equal cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.runs.prepare import Prepared
from experiments.studies import equal
from experiments.studies.equal import at_equal_cost
from experiments.studies.notes import chosen
from experiments.studies.opening import check_study_name, document_of, open_study, with_recorded_choices
from experiments.studies.plan import plan_study
from experiments.tracking.store import Store
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.train.cost import count_flops
from simclr.train.loop import load_batches
from simclr.train.step import start_training, train_step
from tests.helpers import tiny

CPU = torch.device("cpu")
BASELINE = tiny(train={"epochs": 20})


def by_width(prepared: Prepared, by: str) -> float:
    """A cost of steps that is easy to reckon with: that of width 0.125 and batch 256 is 1."""
    config = prepared.config
    return config.model.width * 8 * config.train.batch_size / 256


def layer_flops(config: Config, data: Dataset) -> tuple[float, float]:
    """Operations of one forward pass of both views through all layers, and through the first one, from their shapes."""
    training, found = start_training(config, data, CPU), []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = module.weight
        found.append(2.0 * output.numel() * weight[0].numel())

    for module in training.method.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    train_step(training, *next(load_batches(config, data, CPU, images_on_device=False)))
    return sum(found), found[0]


def test_the_operations_of_a_step_are_those_of_its_layers_in_all_passes(digits: Dataset) -> None:
    for config in (tiny(), tiny(train={"views": "split"})):
        forward, first = layer_flops(config, digits)
        if config.train.views == "split":
            first *= 2  # the first layer runs once for each view
        similarities = 3 * 2.0 * (2 * config.train.batch_size) ** 2 * config.model.out_dim
        counted = count_flops(config, digits, CPU)
        assert counted == pytest.approx(3 * forward - first + similarities, rel=0.02)
    cached = tiny(train={"norm_batch": 64, "micro_batch": 64})
    more = count_flops(cached, digits, CPU) - counted  # one more forward pass, for which the views are made again
    assert forward < more < 1.05 * forward


def test_each_cell_has_the_epochs_that_cost_what_the_baselines_do(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal, "_step_cost", by_width)
    plan = plan_study(BASELINE, vary=["model.width=0.125,0.25,0.5"], equal="time")
    settled = at_equal_cost(plan, store)
    assert {cell.name: (cell.config.train.epochs, cell.cost) for cell in settled.cells} == {
        "baseline": (20, 1.0),
        "width=0.25": (10, 1.0),
        "width=0.5": (5, 1.0),
    }
    shares = {cell.config.optim.warmup_epochs / cell.config.train.epochs for cell in settled.cells}
    assert shares == {BASELINE.optim.warmup_epochs / 20}
    heads = at_equal_cost(plan_study(BASELINE, axis="head", equal="flops"), store)
    assert heads.cells[-1].layer == "z"
    assert heads.cells[-1].config.key() == heads.cells[0].config.key()  # trained once, judged at two layers
    with pytest.raises(
        UserError, match=r"'width=1\.0' can't be trained at the baseline's cost: .* number, 2, takes 80% of its time"
    ):
        at_equal_cost(plan_study(BASELINE, vary=["model.width=0.25,1.0"], equal="time"), store)
    with pytest.raises(UserError, match=r"'baseline' and 'epochs=10' differ only in train\.epochs"):
        at_equal_cost(plan_study(BASELINE, vary=["train.epochs=10,20"], equal="time"), store)


def test_a_resumed_study_keeps_its_epochs_whatever_the_machine_does_now(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal, "_step_cost", by_width)
    plan = plan_study(BASELINE, vary=["model.width=0.125,0.25"], equal="time")
    assert plan.name == "tiny-width-equal-time"
    settled = at_equal_cost(plan, store)
    open_study("equal", settled, store, "simclr ablate --equal time")
    document = document_of("equal", store)
    assert document is not None
    assert with_recorded_choices("equal", plan, store) == settled
    assert chosen(document) == [
        "Equal time of training, as predicted from a few steps on the machine that planned the study, by the number of "
        "epochs: baseline 20 (100%), width=0.25 10 (100%)."
    ]
    monkeypatch.setattr(equal, "_step_cost", lambda prepared, by: 1.0)
    check_study_name("equal", at_equal_cost(plan, store), store)  # what was chosen is no part of what was asked for
    for other in (plan._replace(equal="flops"), plan._replace(equal=None)):
        with pytest.raises(UserError, match="study 'equal' exists with another plan"):
            check_study_name("equal", with_recorded_choices("equal", other, store), store)
