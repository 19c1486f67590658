"""One training step: views, forward, loss, backward, optimizer; with gradient caching where a batch goes in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simclr import optim
from simclr.build import build_model
from simclr.config import Config, divisors, to_toml
from simclr.data.dataset import Dataset
from simclr.device import (
    autocast,
    is_out_of_memory,
    keep_freed_memory,
    release_memory,
    resolve_precision,
)
from simclr.errors import BadSettings, UnusableCheckpoint, UserError
from simclr.methods.ntxent import contrast
from simclr.model import Network, batch_norms, mixes_images, statistics_kept
from simclr.randomness import subseed
from simclr.views import Views, two_views


def embed(model: Network, both: Tensor, views: str) -> Tensor:
    """z of both views, 2 x n x D. `fused`: one forward over both, so batch norm sees 2n images; `split`: one each."""
    if views == "split":
        return torch.stack([model(view)[1] for view in both])
    return model(both.flatten(0, 1))[1].unflatten(0, (2, -1))  # type: ignore[no-any-return]


@dataclass
class Training:
    """A network being trained, and what its steps change: the content of a checkpoint."""

    config: Config
    digest: str  # of the data
    dtype: torch.dtype  # of autocast
    model: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plateau: optim.Plateau
    micro_batch: int  # images whose activations are held at a time; it never changes what is computed
    group: int | None  # images that go through the network together, where that matters to what comes out
    step: int = 0  # done
    epoch_loss: Tensor | float = 0.0  # sum over the steps of the epoch under way, on the device

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler", "plateau")}
        identity = {"key": self.config.key(), "digest": self.digest, "dtype": str(self.dtype)}
        identity["config"] = to_toml(self.config)
        return parts | identity | {"step": self.step, "epoch_loss": self.epoch_loss}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises UserError when it is of another config or other data."""
        if (state.get("key"), state.get("digest")) != (self.config.key(), self.digest):
            raise UnusableCheckpoint(
                "the checkpoint is of another config or other data: resume with the settings it began with"
            )
        if state["dtype"] != str(self.dtype):
            raise UnusableCheckpoint(
                f"the run began in {state['dtype']}, and here it would be in {self.dtype}: go on with it on the device "
                f"that it began on, or --again begins a new one"
            )
        for name in ("model", "optimizer", "scaler", "plateau"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.epoch_loss = state["step"], state["epoch_loss"]


def begin(config: Config, data: Dataset, device: torch.device) -> Training:
    """A training at step 0."""
    if device.type == "cpu":
        keep_freed_memory()
    dtype = resolve_precision(config.train.precision, device)
    return training_of(config, build_model(config, data, device), dtype, data.digest)


def training_of(config: Config, model: Network, dtype: torch.dtype, digest: str) -> Training:
    """A training of a network that is at hand, at step 0."""
    train = config.train
    if batch_norms(model) and train.norm_images() == 1:
        raise UserError(
            f"batch norm needs 2 or more images, and train.norm_batch = {train.norm_batch} leaves groups of 1 in a "
            f"batch of {train.batch_size}: raise it"
        )
    micro_batch = train.batch_size if train.micro_batch == "auto" else train.micro_batch
    return Training(
        config=config,
        digest=digest,
        dtype=dtype,
        model=model.train(),
        optimizer=optim.build(model, config.optim),
        scaler=torch.amp.GradScaler(model.mean.device.type, enabled=dtype == torch.float16),
        plateau=optim.Plateau(config.optim),
        micro_batch=micro_batch,
        group=train.norm_images() if mixes_images(model) else None,
    )


def pieces(rows: slice, size: int | None) -> list[slice]:
    """Rows cut into pieces of a size; in one piece without a size."""
    step = size or rows.stop - rows.start
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def embeddings(training: Training, views: Views, rows: slice) -> Tensor:
    """z of both views of some rows of the batch, 2 x n x D, each group of images by itself."""
    config, device, parts = training.config, training.model.mean.device, []
    for group in pieces(rows, training.group):
        # Dropout and stochastic depth, where there are any, draw the same each time that this group is computed.
        torch.manual_seed(subseed(config.seed, "network", training.step, group.start))
        both = views(group)
        with autocast(device, training.dtype):
            parts.append(embed(training.model, both, config.train.views))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def accumulate(training: Training, views: Views) -> Tensor:
    """Adds the gradient of a whole batch's loss to the parameters'; (loss, contrastive top-1, top-5) of the batch.

    A batch of one micro-batch goes forward and backward once. One of several goes by gradient caching (Gao et al.
    2021, arXiv 2101.06983): forward without a graph, the loss's gradient on the embeddings, then each micro-batch
    forward again, with a graph that takes its part of that gradient back to the weights. The sum is the gradient of the
    whole batch, not of losses within micro-batches.
    """
    settings = training.config.loss
    parts = pieces(slice(0, training.config.train.batch_size), training.micro_batch)
    whole = len(parts) == 1
    with torch.set_grad_enabled(whole):
        z = torch.cat([embeddings(training, views, part) for part in parts], 1)
    z.requires_grad_()  # as it does already where it has a graph
    loss, top = contrast(
        z[0], z[1], settings.temperature, normalize=settings.normalize, include_self=settings.include_self
    )
    training.scaler.scale(loss).backward()
    if not whole:
        with statistics_kept(training.model):  # the first pass has updated batch norm's running averages
            for part in parts:
                embeddings(training, views, part).backward(z.grad[:, part])  # type: ignore[index]
    return torch.cat([loss.detach().view(1), top])


def accumulate_within_memory(training: Training, views: Views) -> Tensor:
    """`accumulate`; out of memory, it begins again with the next smaller micro-batch that gives the same gradient."""
    while (smaller := smaller_micro_batch(training)) is not None:
        buffers = [buffer.clone() for buffer in training.model.buffers()]
        try:
            return accumulate(training, views)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        training.micro_batch = smaller
        training.optimizer.zero_grad()
        for buffer, before in zip(training.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        release_memory()
    return accumulate(training, views)


def smaller_micro_batch(training: Training) -> int | None:
    """The largest micro-batch below the training's own that computes the same; None where there is none.

    It divides the batch, and is of whole groups.
    """
    batch, group = training.config.train.batch_size, training.group or 1
    return max((m for m in divisors(batch) if m < training.micro_batch and m % group == 0), default=None)


def train_step(training: Training, images: Tensor) -> Tensor:
    """One step on a batch (uint8 N x 3 x S x S, on the model's device).

    Returns loss, contrastive top-1 and top-5 as one tensor on the device. Nothing here waits for the device, but the
    scaler of float16, which looks for overflow.
    """
    views = two_views(images, training.config.pipelines(), training.config.seed, training.step)
    report = accumulate_within_memory(training, views)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad()
    training.step += 1
    return report


def diverged(training: Training, what: str) -> BadSettings:
    """The error for a training whose numbers have left all range. Checkpoints are only ever made of finite weights."""
    return BadSettings(
        f"training diverged, with {what} by step {training.step}: lower --lr (now {training.config.optim.lr:g}), raise "
        f"optim.warmup_epochs, or use --precision fp32; the checkpoints before are kept"
    )
