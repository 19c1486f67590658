"""Optimizers, parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from simclr.device import has_fast_bf16
from simclr.settings import Beta, Section, _one_of


class OptimConfig(Section):
    """The optimizer and its learning rate."""

    name: Annotated[str, _one_of("optimizer", lambda: OPTIMIZERS)] = "lars"
    lr: float = Field(0.3, gt=0)  # before scaling
    lr_scaling: Annotated[str, _one_of("learning-rate scaling", lambda: SCALINGS)] = "linear"
    weight_decay: float = Field(1e-6, ge=0)
    decay_bias_and_norm: bool = False
    momentum: float = Field(0.9, ge=0, lt=1)  # lars, sgd, muon (which is run with 0.95)
    trust: float = Field(1e-3, gt=0)  # lars
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # adamw, muon
    schedule: Annotated[str, _one_of("schedule", lambda: SCHEDULES)] = "cosine"
    warmup_epochs: float = Field(10.0, ge=0)
    plateau_factor: float = Field(0.1, gt=0, lt=1)  # schedule = "plateau"
    plateau_patience: int = Field(10, ge=0)  # in epochs


VECTOR_RATE = 0.15  # of Muon's rate, for biases and norms: 3e-3 at 0.02, which AdamW runs well with here


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


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to M (rows x columns), roughly: its singular values become about 1.

    Five Newton-Schulz iterations with the coefficients of Jordan et al. 2024 (Muon), in bfloat16 as there where the
    hardware multiplies it; a CPU that only emulates it takes four times the rest of a training step for them.
    """
    x = matrix.bfloat16() if has_fast_bf16(matrix.device) else matrix
    x = x if matrix.shape[0] <= matrix.shape[1] else x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Nesterov momentum on the gradient of each weight, as a matrix of one row for each output channel; the step is
    lr * sqrt(max(1, rows / columns)) * `orthogonal` of it, after decoupled weight decay. Groups with
    `orthogonal=False` (biases and norms) take Adam's steps, at VECTOR_RATE of the rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "orthogonal": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch passes it)
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                    if not group["orthogonal"]:
                        state |= {"square": torch.zeros_like(parameter), "step": 0}
                if group["orthogonal"]:
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    update = orthogonal(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
                    update *= math.sqrt(max(1, update.shape[0] / update.shape[1]))
                    rate = group["lr"]
                else:
                    (one, two), rate = group["betas"], VECTOR_RATE * group["lr"]
                    state["step"] += 1
                    state["momentum"].lerp_(gradient, 1 - one)
                    state["square"].lerp_(gradient.square(), 1 - two)
                    deviation = (state["square"] / (1 - two ** state["step"])).sqrt_().add_(1e-8)
                    update = state["momentum"] / (1 - one ** state["step"]) / deviation
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.sub_(update.view_as(parameter), alpha=rate)


def _muon(groups: Any, config: OptimConfig) -> Optimizer:
    groups[1]["orthogonal"] = False
    return Muon(groups, config.lr, momentum=config.momentum, betas=config.betas)


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
    "muon": OptimizerRow(_muon, frozenset({"momentum", "betas"})),
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
