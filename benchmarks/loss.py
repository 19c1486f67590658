"""Time and peak memory of NT-Xent, forward and backward, beside other implementations: `python -m benchmarks.loss`.

`plain` and `blockwise` are the two ways of simclr.methods.ntxent. `lightly` and `pytorch-metric-learning` are installed
by `pip install '.[peers]'`. `broadcast` computes the cosine similarity of all pairs by broadcasting, as several
repositories do. Each case runs in its own process, limited to MEMORY bytes. A dash means that this was not enough.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import profile_peak
from simclr.methods import ntxent

WIDTH = 128
TEMPERATURE = 0.2
MEMORY = 16 * 2**30
SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768]  # embeddings: 2N
ROUNDS = 3


def plain(z1: Tensor, z2: Tensor) -> Tensor:
    return ntxent.nt_xent(ntxent.similarities(torch.stack([z1, z2])), TEMPERATURE)


def blockwise(z1: Tensor, z2: Tensor) -> Tensor:
    value: Tensor = ntxent._Blockwise.apply(F.normalize(torch.cat([z1, z2]), dim=1), TEMPERATURE, 2, False)[0]
    return value


def lightly(z1: Tensor, z2: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    value: Tensor = NTXentLoss(temperature=TEMPERATURE)(z1, z2)
    return value


def pytorch_metric_learning(z1: Tensor, z2: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    value: Tensor = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))(z1, z2)
    return value


def broadcast(z1: Tensor, z2: Tensor) -> Tensor:
    z = torch.cat([z1, z2])
    return ntxent.nt_xent(F.cosine_similarity(z.unsqueeze(1), z.unsqueeze(0), dim=2), TEMPERATURE)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "blockwise": blockwise,
    "lightly": lightly,
    "pytorch-metric-learning": pytorch_metric_learning,
    "broadcast": broadcast,
}


def case(form: str, size: int, results: multiprocessing.Queue[tuple[float, int, float] | str | None]) -> None:
    """Put the seconds (median of the rounds after one to warm up), peak bytes and value of a form into `results`.

    Out of memory gives None, and a package that is not installed gives a message.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    draw = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(size // 2, WIDTH, generator=draw).requires_grad_() for _ in range(2))
    value = 0.0

    def once() -> None:
        nonlocal value
        z1.grad = z2.grad = None
        result = FORMS[form](z1, z2)
        result.backward()
        value = result.item()

    try:
        times = []
        for _ in range(ROUNDS + 1):
            clock = time.perf_counter()
            once()
            times.append(time.perf_counter() - clock)
        results.put((median(times[1:]), profile_peak(once), value))
    except (RuntimeError, MemoryError):
        results.put(None)
    except ImportError as error:
        results.put(str(error))


def measure(form: str, size: int) -> tuple[float, int, float] | str | None:
    """What `case` finds, in a process of its own. None if that was killed, too."""
    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[float, int, float] | str | None] = spawn.Queue()
    process = spawn.Process(target=case, args=(form, size, results))
    process.start()
    process.join()
    return results.get() if not results.empty() else None


def main() -> None:
    print(f"CPU, {torch.get_num_threads()} threads, width {WIDTH}, float32, median of {ROUNDS}, one process per case")
    print(f"| 2N | {' | '.join(FORMS)} |")
    print("| ---: |" + " ---: |" * len(FORMS))
    failed: set[str] = set()
    for size in SIZES:
        cells, values = [], []
        for form in FORMS:
            measured = None if form in failed else measure(form, size)
            if measured is None or isinstance(measured, str):
                failed.add(form)  # larger sizes would fail too
                cells.append(measured or "-")
                continue
            seconds, peak, value = measured
            values.append(value)
            cells.append(f"{seconds * 1e3:.0f} ms, {peak / 2**20:.0f} MiB")
        assert max(values) - min(values) < 1e-4, values
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
