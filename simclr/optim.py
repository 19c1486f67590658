"""Optimizers, parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from simclr.device import has_fast_bf16
from simclr.settings import LARGEST, MOST_EPOCHS, Pair, Rate, Section, one_of

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Settings of the optimizer and its learning rate."""

    name: Annotated[str, one_of("optimizer", lambda: OPTIMIZERS)] = "lars"  # optimizer (lars in the paper)
    lr: Rate = 0.3  # learning rate before it is scaled with the batch size
    # Factor on the rate for a batch of N: linear N / 256, sqrt the square root of N over 16, none 1 (paper, B.1).
    lr_scaling: Annotated[str, one_of("learning-rate scaling", lambda: LR_SCALINGS)] = "linear"
    weight_decay: float = Field(1e-6, ge=0, le=LARGEST)  # weight decay, which is decoupled with adamw and muon
    decay_bias_and_norm: bool = False  # whether weight decay and lars also apply to biases and norms
    momentum: float = Field(0.9, ge=0, lt=1)  # momentum of lars, sgd and muon (0.95 is usual for muon)
    trust: Rate = 1e-3  # only for lars: trust coefficient, the step relative to the weights' norm
    # Only for lars: divide by |g + decay w| (SimCLR's code) instead of |g| + decay |w| (the LARS paper).
    decay_in_norm: bool = False
    betas: Pair[Beta] = (0.9, 0.999)  # betas of adamw, and of muon for biases and norms
    schedule: Annotated[str, one_of("schedule", lambda: SCHEDULES)] = "cosine"  # how the rate changes after the warm-up
    warmup_epochs: float = Field(10.0, ge=0, le=MOST_EPOCHS)  # epochs in which the rate rises from zero
    plateau_factor: float = Field(0.1, gt=0, lt=1)  # only for plateau: factor by which the rate falls
    # Only for plateau: number of epochs without a lower loss after which the rate falls.
    plateau_patience: int = Field(10, ge=0, le=MOST_EPOCHS)

    def effective_settings(self) -> dict[str, Any]:
        """The settings that are used, but neither `lr` nor its scaling, which act only through `peak_rate`."""
        used = OPTIMIZERS[self.name].uses
        unused = {"lr", "lr_scaling"} | {name for row in OPTIMIZERS.values() for name in row.uses - used}
        if self.schedule != "plateau":
            unused |= {"plateau_factor", "plateau_patience"}
        if self.weight_decay == 0 and self.name != "lars":
            unused.add("decay_bias_and_norm")
        if self.weight_decay == 0 or not self.decay_in_norm:
            unused.add("decay_in_norm")  # keys from before there was this setting
        return self.model_dump(mode="json", exclude=unused)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, Algorithm 1), as SimCLR uses it.

    local = trust * |w| / (|g| + weight_decay * |w|), or 1 if either norm is zero, so that zero weights can move
    v <- momentum * v + lr * local * (g + weight_decay * w)
    w <- w - v

    With `decay_in_norm`, local = trust * |w| / |g + weight_decay * w|, as in the code that the SimCLR paper published.
    Groups with `adapt=False` (biases and norms) use local = 1: plain SGD with momentum, as in the paper's code.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
        decay_in_norm: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        self.decay_in_norm = decay_in_norm
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch passes it)
        for group, parameters, gradients in _with_gradients(self):
            (momenta,), decay = _state_of(self, parameters, "momentum"), group["weight_decay"]
            updates: list[Tensor] | tuple[Tensor, ...] = gradients
            if decay:
                updates = torch._foreach_mul(parameters, decay)
                torch._foreach_add_(updates, gradients)
            if group["adapt"]:
                added = 0.0 if self.decay_in_norm else decay
                weights = torch.stack(torch._foreach_norm(parameters))
                norms = torch.stack(torch._foreach_norm(updates if self.decay_in_norm else gradients))
                local = group["trust"] * weights / (norms + added * weights)
                local = torch.where((weights > 0) & (norms > 0), local, 1.0)
                if decay:  # in place, because each copy takes as much memory as the network
                    torch._foreach_mul_(updates, local.unbind())
                else:  # gradients stay as they are
                    updates = torch._foreach_mul(updates, local.unbind())
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates, alpha=group["lr"])
            torch._foreach_sub_(parameters, momenta)


VECTOR_RATE = 0.15  # Adam's rate for biases and norms as a fraction of Muon's: 3e-3 at 0.02, which works well here


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to a stack of matrices (k x rows x columns), approximately.

    Their singular values become about 1. Five Newton-Schulz iterations with the coefficients of Jordan et al. 2024
    (Muon). They run in bfloat16, as there, if the hardware supports it natively. A CPU that emulates it would need four
    times as long as the rest of the step.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if has_fast_bf16(matrices.device) else matrices
    x = x.mT if tall else x
    x = x / torch.stack(torch._foreach_norm(x.unbind())).clamp(min=1e-7).view(-1, 1, 1)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The Nesterov momentum of each weight is a matrix with one row for each output channel. After decoupled weight decay,
    the step is lr * sqrt(max(1, rows / columns)) * orthogonalize(matrix). Groups with `orthogonal=False` (biases and
    norms) take the steps of AdamW, with VECTOR_RATE times the learning rate.
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
        for group, parameters, gradients in _with_gradients(self):
            if group["orthogonal"]:
                rate, updates = group["lr"], self._orthogonal(group, parameters, gradients)
            else:
                rate, updates = VECTOR_RATE * group["lr"], self._adaptive(group, parameters, gradients)
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_sub_(parameters, updates, alpha=rate)

    def _orthogonal(self, group: Any, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The updates of matrices. Those of equal shape are orthogonalised together."""
        (momenta,) = _state_of(self, parameters, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike: dict[tuple[torch.Size, tuple[int, ...]], list[int]] = {}
        for i, parameter in enumerate(parameters):
            alike.setdefault((parameter.shape, parameter.stride()), []).append(i)
        updates = dict[int, Tensor]()
        for (shape, strides), members in alike.items():
            matrices = orthogonalize(torch.stack([ahead[i] for i in members]).flatten(2))
            scale = math.sqrt(max(1, matrices.shape[1] / matrices.shape[2]))
            # On CUDA, a list is updated by one kernel only if the updates are laid out in memory like the parameters.
            scaled = matrices.new_empty_strided((len(members), *shape), (shape.numel(), *strides))
            torch.mul(matrices.view_as(scaled), scale, out=scaled)
            updates |= dict(zip(members, scaled.unbind(), strict=True))
        return [updates[i] for i in range(len(parameters))]

    def _adaptive(self, group: Any, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The updates of biases and norms, by Adam."""
        (one, two), (momenta, squares) = group["betas"], _state_of(self, parameters, "momentum", "square")
        counts = []
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            counts.append(state["step"])
        torch._foreach_lerp_(momenta, gradients, 1 - one)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - two)
        deviations = torch._foreach_div(squares, [1 - two**steps for steps in counts])
        torch._foreach_sqrt_(deviations)
        torch._foreach_add_(deviations, 1e-8)
        updates = torch._foreach_div(momenta, [1 - one**steps for steps in counts])
        torch._foreach_div_(updates, deviations)
        return list(updates)


def _with_gradients(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Each parameter group that has gradients, with the parameters that have one, and these gradients.

    Both optimizers work on lists, because on a GPU an operation on a list takes one or two kernels, however long the
    list is, if its tensors have the same layout.
    """
    for group in optimizer.param_groups:
        if parameters := [p for p in group["params"] if p.grad is not None]:
            yield group, parameters, [p.grad for p in parameters]


def _state_of(optimizer: Optimizer, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
    """What an optimizer keeps of each parameter under some names, zeros at first."""
    for parameter in parameters:
        for name in names:
            if name not in (state := optimizer.state[parameter]):
                state[name] = torch.zeros_like(parameter)
    return [[optimizer.state[parameter][name] for parameter in parameters] for name in names]


def _muon(groups: Any, config: OptimConfig) -> Optimizer:
    groups[1]["orthogonal"] = False
    return Muon(groups, config.lr, momentum=config.momentum, betas=config.betas)


def _lars(groups: Any, config: OptimConfig) -> Optimizer:
    groups[1]["adapt"] = config.decay_bias_and_norm
    return LARS(groups, config.lr, momentum=config.momentum, trust=config.trust, decay_in_norm=config.decay_in_norm)


def _sgd(groups: Any, config: OptimConfig) -> Optimizer:
    optimizer = torch.optim.SGD(groups, config.lr, momentum=config.momentum, fused=_fused(groups))
    if config.momentum and optimizer.defaults["fused"]:
        _zero_momenta(optimizer)
        optimizer.register_load_state_dict_post_hook(_zero_momenta)
    return optimizer


def _zero_momenta(optimizer: Optimizer) -> None:
    """Give trained parameters without a momentum one of zeros, with which the first step is the same.

    Torch's fused SGD makes momenta of uninitialised memory, which a step that float16's scaler skips leaves as it is.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _adamw(groups: Any, config: OptimConfig) -> Optimizer:
    return torch.optim.AdamW(groups, config.lr, betas=config.betas, fused=_fused(groups))


def _fused(groups: Any) -> bool | None:
    """Whether torch's optimizers update all parameters in one kernel: on CUDA. None leaves the choice to torch."""
    return groups[0]["params"][0].device.type == "cuda" or None


class OptimizerRow(NamedTuple):
    """How to build an optimizer, and which of the settings that only some use it does."""

    title: str  # its name in texts
    build: Callable[[Any, OptimConfig], Optimizer]
    uses: frozenset[str]


OPTIMIZERS: dict[str, OptimizerRow] = {
    "lars": OptimizerRow("LARS", _lars, frozenset({"momentum", "trust", "decay_in_norm"})),
    "sgd": OptimizerRow("SGD", _sgd, frozenset({"momentum"})),
    "muon": OptimizerRow("Muon", _muon, frozenset({"momentum", "betas"})),
    "adamw": OptimizerRow("AdamW", _adamw, frozenset({"betas"})),
}


def build(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of a config for a model. Biases and norms (one-dimensional parameters) are the second group.

    Unless `decay_bias_and_norm` is set, that group has no weight decay and, with LARS, no adaptation.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [p for p in model.parameters() if p.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_bias_and_norm else 0.0,
        },
    ]
    optimizer = OPTIMIZERS[config.name].build(groups, config)
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    return optimizer


def _keep_kernels(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to be loaded, without its choice of kernels: an optimizer's own is right for its device.

    Torch would take `fused` from the state. One that was saved without it, before it was used or on another device,
    would leave a fused optimizer to which float16's scaler hands gradients that the other kernels refuse, because they
    are still scaled. Where `fused` is set, torch also moves the counts of steps to the device while it loads.
    """
    kernels = {name: optimizer.defaults[name] for name in ("fused", "foreach") if name in optimizer.defaults}
    return {**state, "param_groups": [group | kernels for group in state["param_groups"]]}


# From the batch size to the factor on `lr` (paper, Appendix B.1).
LR_SCALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda batch: 1.0,
    "linear": lambda batch: batch / 256,
    "sqrt": lambda batch: math.sqrt(batch) / 16,
}

# From the progress after the warm-up, in [0, 1), to the factor on the peak rate. `Plateau` has its own factor.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
    "plateau": lambda progress: 1.0,
}


def peak_rate(config: OptimConfig, batch_size: int) -> float:
    """The learning rate after the warm-up: `lr` scaled with the batch size."""
    return config.lr * LR_SCALINGS[config.lr_scaling](batch_size)


def learning_rate(config: OptimConfig, batch_size: int, step: int, total: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (0 .. total-1): a linear warm-up over `warmup_epochs`, then the schedule."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return peak_rate(config, batch_size) * (step + 1) / warmup
    return peak_rate(config, batch_size) * SCHEDULES[config.schedule]((step - warmup) / max(1, total - warmup))


class Plateau:
    """A factor on the learning rate, multiplied by `factor` if the loss has not improved for `patience` epochs.

    A loss is an improvement if it is lower than the best one by more than 1e-4 of its magnitude. For positive losses,
    torch's ReduceLROnPlateau does the same by default. For negative losses, its threshold lies above the best loss.
    """

    def __init__(self, config: OptimConfig) -> None:
        self.factor, self.patience = config.plateau_factor, config.plateau_patience
        self.scale, self.best, self.bad_epochs = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        """Take the mean loss of an epoch into account."""
        if loss < self.best * (1 - math.copysign(1e-4, self.best)):
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
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
