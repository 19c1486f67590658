"""Predict a step of ResNet-50 on ImageNet at batch 4,096 on several GPUs: `python -m benchmarks.scale_model`.

Nothing is measured here. It adds up arithmetic, views and communication from the assumptions below, and prints the
table of docs/guides/scale.md.
"""

from __future__ import annotations

from typing import NamedTuple

from tabulate import tabulate

BATCH, SIDE, IMAGES, EPOCHS = 4096, 224, 1_281_167, 100
WIDTH = 128  # of an embedding
WEIGHTS = 23.5e6 + 2048 * 2048 + 2048 * 128  # ResNet-50 without its classifier, and the head
FLOPS = 3 * 8.2e9  # of a view, forward and backward: 4.1 G multiply-adds forward, and twice that backward
RATE = 60e12  # FLOP/s that one GPU reaches in bfloat16: a sixteenth of what an H100 has, about 2,400 views/s
VIEWS = 2.5e-9  # seconds for a pixel of a view: 10.6 ms for 1,024 views of 64 x 64 on an H200, timed once
FIT = 800  # views whose activations fit a GPU with 80 GB at once: 85 MB each. More need a second forward pass
LATENCY = 10e-6  # seconds before the first byte of a message arrives


class Setup(NamedTuple):
    """Some GPUs and the slowest link of the ring that joins them, in bytes/s for each direction."""

    gpus: int
    machines: int
    link: str
    bytes_per_second: float


SETUPS = [
    Setup(1, 1, "none", float("inf")),
    Setup(8, 1, "NVLink", 300e9),
    Setup(64, 8, "InfiniBand, 8 x 400 Gb/s", 300e9),
    Setup(64, 8, "Ethernet, 100 Gb/s", 11e9),
    Setup(64, 8, "Ethernet, 10 Gb/s", 1.1e9),
]


class Step(NamedTuple):
    """Seconds of the parts of a step. None overlaps with another."""

    network: float
    views: float
    loss: float
    gather: float  # of embeddings
    sum: float  # of gradients

    @property
    def whole(self) -> float:
        return sum(self)


def predict(setup: Setup) -> Step:
    """A step on these GPUs, whose processes have equal shares of the batch."""
    share = 2 * BATCH / setup.gpus  # views
    passes = 4 / 3 if share > FIT else 1  # with a second forward pass, if its activations don't fit
    matrix = 3 * 2 * (2 * BATCH) ** 2 * WIDTH / setup.gpus  # similarities, and the gradient of both sides
    others = setup.gpus - 1
    embeddings, gradients = 4 * 2 * BATCH * WIDTH, 4 * WEIGHTS  # bytes, in float32
    return Step(
        network=passes * share * FLOPS / RATE,
        views=share * SIDE**2 * VIEWS,
        loss=matrix / (RATE / 10),  # in float32
        gather=others * LATENCY + others / setup.gpus * embeddings / setup.bytes_per_second,
        sum=2 * others * LATENCY + 2 * others / setup.gpus * gradients / setup.bytes_per_second,
    )


def table() -> str:
    """The predictions, as Markdown."""
    alone = predict(SETUPS[0]).whole
    rows = []
    for setup in SETUPS:
        step = predict(setup)
        rate = BATCH / step.whole
        rows.append(
            {
                "GPUs": setup.gpus,
                "slowest link": setup.link,
                "views on a GPU": f"{2 * BATCH // setup.gpus:,}",
                "network": _time(step.network),
                "views": _time(step.views),
                "loss": _time(step.loss),
                "embeddings": _time(step.gather),
                "gradients": _time(step.sum),
                "step": _time(step.whole),
                "speed-up": f"{alone / step.whole:.1f}",
                "100 epochs": f"{EPOCHS * IMAGES / rate / 3600:.1f} h",
                "reads of a machine": f"{rate / setup.machines * SIDE**2 * 3 / 1e9:.2f} GB/s",
            }
        )
    text: str = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    return text


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds else "0"


if __name__ == "__main__":
    print(table())
