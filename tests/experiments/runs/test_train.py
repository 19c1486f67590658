from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import plots
from experiments.runs import estimate, pictures, train
from experiments.tracking import Store
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.errors import RunFailed, UserError
from tests.helpers import tiny

OUT_OF_MEMORY = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes"),
}
PLACES: dict[str, tuple[str, Callable[[Config, Store], object]]] = {
    "a step": ("simclr.train.train_step", train.train),
    "moving the images": ("simclr.train.stored_images", train.train),
    "kNN on validation": ("simclr.train.knn_accuracy", train.train),
    "a dry run": ("simclr.train.train_step", estimate.estimate),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_is_a_sentence_wherever_it_happens(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OUT_OF_MEMORY[kind]

    name, run = PLACES[place]
    monkeypatch.setattr(name, full)
    store = Store(tmp_path)
    with pytest.raises(
        RunFailed, match=r"out of memory: lower --micro-batch \(now auto\), for that train.norm_batch \(now 256\)"
    ):
        run(tiny(train={"knn_every": 1, "epochs": 1}), store)
    assert [item.info.status for item in store.search()] == ["FAILED"] * (run is train.train)


def test_the_grid_has_a_row_for_each_view_and_each_operation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, object] = {}
    monkeypatch.setattr(plots, "image_rows", lambda images, path: rows.update(images))
    config = tiny(augment2={"grayscale": {"p": 0.0}, "noise": {"p": 0.5}})
    data = open_dataset(config.data, tmp_path)
    pictures.view_grid(config, data, tmp_path / "grid.png")
    first, second = config.pipelines()
    assert list(rows) == ["original", "view 1", "view 2", *first, "noise (view 2)"]
    assert "noise" not in first
    assert "grayscale" not in second
    shown = data.parts["pretrain"][:: len(data.parts["pretrain"]) // 12][:12]
    originals = data.images[shown].transpose(0, 2, 3, 1) / np.float32(255)
    np.testing.assert_array_equal(rows["original"], originals)
    np.testing.assert_array_equal(rows["flip"], originals[:, :, ::-1])  # of every image, as p is 1 there


def test_resume_without_an_unfinished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no unfinished run of this config has a checkpoint: run without --resume"):
        train.train(tiny(), Store(tmp_path), resume=True)


def test_a_dry_run_of_what_the_machine_cannot_hold_is_refused_before_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr.train.train_step", lambda *arguments: pytest.fail("a step was run"))
    monkeypatch.setattr("simclr.device.system_memory", lambda: 2.0**20)
    with pytest.raises(UserError, match=r"needs .* and this machine has 1 MiB: with --memory \(e\.g\. 8GiB\)"):
        estimate.estimate(tiny(), Store(tmp_path))
