"""Optimizers, parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from .config import OptimConfig


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, Algorithm 1), as SimCLR uses it.

    local rate = trust * |w| / (|g| + weight_decay * |w|), 1 where either norm is zero (so that parameters that start
    at zero move); v <- momentum * v + lr * local * (g + weight_decay * w); w <- w - v. Groups with `adapt=False`
    (biases and norms) take plain momentum SGD steps without weight decay, as in the paper's code.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch passes it)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update, decay = parameter.grad, group["weight_decay"]
                if group["adapt"]:
                    weight_norm, grad_norm = parameter.norm(), update.norm()
                    local = group["trust"] * weight_norm / (grad_norm + decay * weight_norm)
                    local = torch.where((weight_norm > 0) & (grad_norm > 0), local, 1.0)
                    update = local * (update + decay * parameter)
                elif decay:
                    update = update + decay * parameter
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                parameter.sub_(state["momentum"])


def _lars(groups: Any, config: OptimConfig) -> Optimizer:
    groups[1]["adapt"] = config.decay_bias_and_norm
    return LARS(groups, config.lr, momentum=config.momentum, trust=config.trust)


def _sgd(groups: Any, config: OptimConfig) -> Optimizer:
    return torch.optim.SGD(groups, config.lr, momentum=config.momentum)


def _adamw(groups: Any, config: OptimConfig) -> Optimizer:
    return torch.optim.AdamW(groups, config.lr, betas=config.betas)


class OptimizerRow(NamedTuple):
    """One row of OPTIMIZERS: how to build it, and the settings of its own that it reads."""

    build: Callable[[Any, OptimConfig], Optimizer]
    reads: frozenset[str]


OPTIMIZERS: dict[str, OptimizerRow] = {
    "lars": OptimizerRow(_lars, frozenset({"momentum", "trust"})),
    "sgd": OptimizerRow(_sgd, frozenset({"momentum"})),
    "adamw": OptimizerRow(_adamw, frozenset({"betas"})),
}
OWN_SETTINGS = frozenset().union(*(row.reads for row in OPTIMIZERS.values()))


def build(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of a config; biases and norm parameters (one-dimensional) have a group of their own.

    That group has no weight decay and, with LARS, no adaptation, unless `decay_bias_and_norm` says otherwise.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [p for p in model.parameters() if p.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_bias_and_norm else 0.0,
        },
    ]
    return OPTIMIZERS[config.name].build(groups, config)


# How the learning rate follows the batch size (paper, Appendix B.1): the factor on `lr`.
SCALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda batch: 1.0,
    "linear": lambda batch: batch / 256,
    "sqrt": lambda batch: math.sqrt(batch) / 16,
}

# What follows the warm-up, as a factor of the peak, for a progress in [0, 1). `Plateau` keeps a factor of its own.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
    "plateau": lambda progress: 1.0,
}


def peak_rate(config: OptimConfig, batch_size: int) -> float:
    """The learning rate after the warm-up: `lr` times its scaling with the batch size (per 256 images)."""
    return config.lr * SCALINGS[config.lr_scaling](batch_size)


def learning_rate(config: OptimConfig, batch_size: int, step: int, total: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (0 .. total-1): linear warm-up over `warmup_epochs`, then the schedule."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return peak_rate(config, batch_size) * (step + 1) / warmup
    return peak_rate(config, batch_size) * SCHEDULES[config.schedule]((step - warmup) / max(1, total - warmup))


class Plateau:
    """The factor on the learning rate that falls by `factor` when the epoch's loss has not improved for a while.

    The rule and defaults of torch's ReduceLROnPlateau (relative threshold 1e-4).
    """

    def __init__(self, config: OptimConfig) -> None:
        self.factor, self.patience = config.plateau_factor, config.plateau_patience
        self.scale, self.best, self.bad_epochs = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        if loss < self.best * (1 - 1e-4):
            self.best, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.scale, self.bad_epochs = self.scale * self.factor, 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.best, self.bad_epochs = state["scale"], state["best"], int(state["bad_epochs"])


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
