from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny

from experiments import runner
from experiments.tracking import Store
from simclr.config import Config
from simclr.errors import RunFailed, UserError

OUT_OF_MEMORY = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes"),
}
PLACES: dict[str, tuple[str, Callable[[Config, Store], object]]] = {
    "a step": ("simclr.train.train_step", runner.train),
    "moving the images": ("simclr.train.stored_images", runner.train),
    "kNN on validation": ("simclr.train.knn_accuracy", runner.train),
    "a dry run": ("simclr.train.train_step", runner.estimate),
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
    assert [item.info.status for item in store.search()] == ["FAILED"] * (run is runner.train)


def test_resume_without_an_unfinished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no unfinished run of this config has a checkpoint: run without --resume"):
        runner.train(tiny(), Store(tmp_path), resume=True)
