"""Averaged weights over training (train.ema): what they are, that they are evaluated, kept, resumed and planned."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from simclr.data.dataset import Dataset, open_dataset
from simclr.train.loop import Interrupted, batch_rows, pretrain
from simclr.train.step import start_training, train_step
from simclr.weights import checkpoint
from tests.helpers import tiny
from tests.simclr.train.helpers import Watch, assert_predicted, same_weights

CPU = torch.device("cpu")
AVERAGED = tiny(
    model={"backbone": "resnet10"},
    data={"limit": 128},
    train={"batch_size": 64, "ema": 0.9, "knn_every": 1, "keep_every": 1},
)


@pytest.fixture(scope="module")
def few(home: Path) -> Dataset:
    """The digits with only a few images to pre-train on."""
    return open_dataset(AVERAGED.data, home)


def test_the_average_is_that_of_the_networks_after_each_step(few: Dataset) -> None:
    training = start_training(AVERAGED, few, CPU)
    expected = {name: tensor.double() for name, tensor in training.model.state_dict().items()}
    for rows in islice(batch_rows(AVERAGED, few), 3):
        train_step(training, torch.from_numpy(few.images)[rows], torch.from_numpy(few.labels)[rows])
        for name, tensor in training.model.state_dict().items():
            counts = name.endswith("num_batches_tracked")
            expected[name] = tensor.double() if counts else 0.9 * expected[name] + 0.1 * tensor.double()
    average = training.evaluated
    assert average is training.method.ema
    assert not same_weights(average, training.model)
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    optimized = {id(p) for group in training.optimizer.param_groups for p in group["params"] if p.requires_grad}
    assert optimized == {id(p) for p in training.model.parameters()}


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_stopped_run_resumes_to_the_same_bits_and_its_checkpoint_is_evaluated_as_the_average(
    method: str, few: Dataset, tmp_path: Path
) -> None:
    config = AVERAGED.model_copy(update={"method": method})
    whole = pretrain(config, few, CPU, tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(config, few, CPU, tmp_path / "parts", Watch(stop_after=2))
    (first,) = checkpoint.checkpoints(tmp_path / "parts")  # at the end of the first epoch, as the snapshot
    kept = checkpoint.load_weights(checkpoint.snapshots(tmp_path / "parts")[1])[1]
    assert all(torch.equal(kept[name], tensor) for name, tensor in checkpoint.load_weights(first)[1].items())
    assert same_weights(whole, pretrain(config, few, CPU, tmp_path / "parts", resume=True))
    last = checkpoint.checkpoints(tmp_path / "whole")[-1]
    _, weights, _ = checkpoint.load_weights(last)
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.state_dict().items())
    assert not torch.equal(weights["encoder.conv1.weight"], checkpoint.read(last)["model"]["encoder.conv1.weight"])


def test_its_memory_is_predicted() -> None:
    train = {"batch_size": 128, "norm_batch": 128, "precision": "fp32", "ema": 0.99}
    assert_predicted(tiny(model={"backbone": "resnet10", "stem": "cifar"}, train=train), 128)
