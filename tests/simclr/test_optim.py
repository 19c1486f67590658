"""Optimizers compared with the papers, timm and torch, parameter groups, and the learning rate."""

import copy
import itertools
import math

import pytest
import timm.optim
import torch
from torch import nn

from experiments.configs.resolve import resolve
from simclr import optim
from simclr.model import ModelConfig, Network
from simclr.optim import OptimConfig
from tests.simclr.train.helpers import Operations

RATES = [0.1, 0.5, 0.3, 0.02, 0.7]
EXACT = {"atol": 1e-14, "rtol": 1e-12}  # for float64, with sums in another order


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def algorithm_1(w: list[float], gradients: list[list[float]], rates, trust, decay, momentum, adapt=True) -> list[float]:
    """You et al. 2017, Algorithm 1, for one layer, number by number.

    The local rate is 1 if a norm is zero or the layer is not adapted.
    """
    w, v = list(w), [0.0] * len(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        weight_norm = math.sqrt(sum(x * x for x in w))
        gradient_norm = math.sqrt(sum(x * x for x in gradient))
        local = 1.0
        if adapt and weight_norm > 0 and gradient_norm > 0:
            local = trust * weight_norm / (gradient_norm + decay * weight_norm)
        for i in range(len(w)):
            v[i] = momentum * v[i] + rate * local * (gradient[i] + decay * w[i])
            w[i] = w[i] - v[i]
    return w


def published_code(w: list[float], gradients: list[list[float]], rates, trust, decay, momentum) -> list[float]:
    """The branch `classic_momentum` of lars_optimizer.py in google-research/simclr, number by number."""
    w, v = list(w), [0.0] * len(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        whole = [g + decay * x for g, x in zip(gradient, w, strict=True)]
        weight_norm, whole_norm = (math.sqrt(sum(x * x for x in vector)) for vector in (w, whole))
        ratio = trust * weight_norm / whole_norm if weight_norm > 0 and whole_norm > 0 else 1.0
        for i in range(len(w)):
            v[i] = momentum * v[i] + rate * ratio * whole[i]
            w[i] = w[i] - v[i]
    return w


def run(optimizer: torch.optim.Optimizer, parameters, gradients, rates) -> None:
    for step, rate in enumerate(rates):
        optim.set_rate(optimizer, rate)
        for parameter, its_gradients in zip(parameters, gradients, strict=True):
            parameter.grad = its_gradients[step].clone()
        optimizer.step()


# --- LARS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [algorithm_1, published_code])
@pytest.mark.parametrize(("momentum", "decay", "trust"), [(0.0, 0.0, 0.02), (0.9, 1e-6, 0.001), (0.9, 0.1, 0.02)])
def test_lars_equals_algorithm_1_of_its_paper_or_the_code_of_simclr(momentum, decay, trust, reference):
    weights = [random(3, 4, seed=0), random(5, 2, 2, 2, seed=1), torch.zeros(2, 3, dtype=torch.float64)]
    gradients = [[random(*w.shape, seed=10 * i + step) for step in range(5)] for i, w in enumerate(weights)]
    gradients[0][2].zero_()  # without a gradient, the momentum continues
    parameters = [nn.Parameter(w.clone()) for w in weights]
    lars = optim.LARS(parameters, 1.0, momentum, decay, trust, decay_in_norm=reference is published_code)
    run(lars, parameters, gradients, RATES)
    for parameter, w, its_gradients in zip(parameters, weights, gradients, strict=True):
        flat = [g.flatten().tolist() for g in its_gradients]
        expected = reference(w.flatten().tolist(), flat, RATES, trust, decay, momentum)
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_equals_timm_at_a_constant_rate(decay):
    """timm multiplies by the rate after the momentum, and Algorithm 1 before it.

    The two agree while the rate is constant. timm also adds `eps` to the denominator, which the paper does not have.
    """
    weights = [random(3, 4, seed=0), random(5, 2, 2, 2, seed=1), torch.zeros(2, 3, dtype=torch.float64)]
    gradients = [[random(*w.shape, seed=10 * i + step) for step in range(5)] for i, w in enumerate(weights)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    run(optim.LARS(ours, 1.0, 0.9, decay), ours, gradients, [0.3] * 5)
    lars = timm.optim.Lars(theirs, 1.0, momentum=0.9, weight_decay=decay, eps=0.0, always_adapt=True)
    run(lars, theirs, gradients, [0.3] * 5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **EXACT)


def test_lars_with_decay_in_its_norm_equals_timm_on_gradients_that_hold_the_decay():
    weights = [random(3, 4, seed=0), random(5, 2, 2, 2, seed=1)]
    gradients = [random(*w.shape, seed=10 + i) for i, w in enumerate(weights)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    lars = timm.optim.Lars(theirs, 1.0, momentum=0.9, weight_decay=0.0, eps=0.0, always_adapt=True)
    mine = optim.LARS(ours, 1.0, 0.9, 0.1, decay_in_norm=True)
    for _ in range(5):
        run(lars, theirs, [[g + 0.1 * w.detach()] for g, w in zip(gradients, theirs, strict=True)], [0.3])
        run(mine, ours, [[g] for g in gradients], [0.3])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **EXACT)


def test_the_preset_of_the_published_code_has_its_lars_and_others_keep_theirs():
    assert resolve("paper-cifar10-resnet18").optim.decay_in_norm
    assert not any(resolve(name).optim.decay_in_norm for name in ("paper-cifar10", "paper-imagenet"))
    optimizer = optim.build(Toy(), OptimConfig(decay_in_norm=True))
    assert optimizer.decay_in_norm


def test_lars_has_the_defaults_of_the_paper():
    assert optim.LARS([nn.Parameter(torch.ones(2, 2))], 0.1).defaults == {
        "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-6, "trust": 1e-3, "adapt": True,
    }  # fmt: skip


def test_lars_scales_each_gradient_by_the_rate_of_its_own_step():
    """The rate is inside the momentum buffer, so with a later rate of zero, earlier steps still have an effect."""
    parameter = nn.Parameter(random(3, 3, seed=0))
    gradient = random(3, 3, seed=1)
    optimizer = optim.LARS([parameter], 1.0, weight_decay=0.0)
    positions = [parameter.detach().clone()]
    for rate in (1.0, 0.0):
        run(optimizer, [parameter], [[gradient]], [rate])
        positions.append(parameter.detach().clone())
    torch.testing.assert_close(positions[2] - positions[1], 0.9 * (positions[1] - positions[0]), **EXACT)


def test_lars_steps_do_not_depend_on_the_scale_of_the_gradient():
    moves = []
    for scale in (1e-4, 1.0, 1e4):
        parameter = nn.Parameter(random(4, 4, seed=0))
        before = parameter.detach().clone()
        optimizer = optim.LARS([parameter], 1.0, weight_decay=0.0)
        run(optimizer, [parameter], [[scale * random(4, 4, seed=1)]], [0.5])
        moves.append(parameter.detach() - before)
    torch.testing.assert_close(moves[0], moves[1], **EXACT)
    torch.testing.assert_close(moves[2], moves[1], **EXACT)
    torch.testing.assert_close(moves[1].norm(), 0.5 * 1e-3 * random(4, 4, seed=0).norm(), **EXACT)


def test_lars_moves_parameters_that_start_at_zero():
    parameter = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    gradient = random(3, 3, seed=0)
    run(optim.LARS([parameter], 1.0), [parameter], [[gradient]], [0.1])
    torch.testing.assert_close(parameter.detach(), -0.1 * gradient, **EXACT)


def test_lars_skips_parameters_without_gradient():
    used, unused = nn.Parameter(random(2, 2, seed=0)), nn.Parameter(random(2, 2, seed=1))
    before = unused.detach().clone()
    optimizer = optim.LARS([used, unused], 0.1)
    used.grad = random(2, 2, seed=2)
    optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16), (24, 5, 3, 3)])
def test_orthogonalize_keeps_directions_and_equalizes_singular_values(shape, fast, monkeypatch):
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: fast)
    torch.manual_seed(0)
    matrix = torch.randn(shape).flatten(1)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    (found,) = optim.orthogonalize(1000 * matrix.unsqueeze(0))
    projected = left.T @ found @ right.T
    well = torch.linalg.svdvals(matrix) > 0.1 * torch.linalg.matrix_norm(matrix, 2)
    assert projected.diagonal()[well].min() > 0.5  # the coefficients favour speed over an exact 1
    assert projected.diagonal().max() < 1.3
    assert (projected - projected.diag().diag()).abs().max() < 0.1


@pytest.mark.parametrize("fast", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_equals_timm(decay, fast, monkeypatch):
    """The arguments replace timm's defaults by the definitions of Jordan et al. 2024.

    timm always iterates in bfloat16, hence the tolerance where we don't. Its Nesterov momentum would turn Adam into
    NAdam for biases and norms, and it leaves depthwise convolutions and very small matrices to Adam. Here Muon takes
    all matrices.
    """
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: fast)
    torch.manual_seed(0)
    start = [torch.randn(6, 20), torch.randn(20, 6), torch.randn(8, 3, 3, 3), torch.randn(9)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    ours[2].data = ours[2].data.contiguous(memory_format=torch.channels_last)
    groups = [{"params": ours[:3]}, {"params": ours[3:], "orthogonal": False}]
    mine = optim.Muon(groups, lr=0.02, momentum=0.9, weight_decay=decay)
    muon = timm.optim.Muon(
        [{"params": theirs[:3]}, {"params": theirs[3:], "nesterov": False, "eps": 1e-8}],
        lr=0.02,
        momentum=0.9,
        weight_decay=decay,
        nesterov=True,
        ns_coefficients="original",
        adjust_lr_fn="original",
        conv_mode="flatten",
        betas=(0.9, 0.999),
        fallback_lr_scale=optim.VECTOR_RATE,
    )
    for rate in RATES:
        optim.set_rate(mine, 0.1 * rate)
        optim.set_rate(muon, 0.1 * rate)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.contiguous()
        mine.step()
        muon.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6 if fast else 4e-3, check_stride=False)


# --- all optimizers ---------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4).double()
        self.norm = nn.BatchNorm1d(4).double()


MIXED = ((6, 4), (4, 6, 3, 3), (6, 4), (5, 3, 1, 1), (2, 4), (6,))  # shapes; two matrices have the same


def several(copies: int, name: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """As many parameters of each of the MIXED shapes, channels-last as in networks, and their optimizer."""
    tensors = [random(*shape, seed=100 * i + j) for i in range(copies) for j, shape in enumerate(MIXED)]
    parameters = [nn.Parameter(channels_last(tensor)) for tensor in tensors]
    return parameters, optim.build(nn.ParameterList(parameters), OptimConfig(name=name, lr=0.1, weight_decay=0.01))


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@pytest.mark.parametrize("name", ["lars", "muon"])
def test_tensors_are_updated_together_and_exactly_as_one_by_one(name, monkeypatch):
    layouts, subtract = [], torch._foreach_sub_

    def recorded(parameters, updates, **factors):
        layouts.extend((p.stride(), update.stride()) for p, update in zip(parameters, updates, strict=True))
        subtract(parameters, updates, **factors)

    monkeypatch.setattr(torch, "_foreach_sub_", recorded)
    counts, (alone, _) = [], several(1, name)
    optimizers = [optim.build(nn.ParameterList([p]), OptimConfig(name=name, lr=0.1, weight_decay=0.01)) for p in alone]
    for copies in (1, 3):
        parameters, together = several(copies, name)
        for step in range(3):
            for i, p in enumerate(parameters):
                p.grad = channels_last(random(*p.shape, seed=1000 * step + i))
            with Operations() as operations:
                together.step()
        counts.append(operations.count)
        if copies == 1:
            for step in range(3):
                for i, (p, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
                    p.grad = channels_last(random(*p.shape, seed=1000 * step + i))
                    optimizer.step()
            assert all(torch.equal(p, q) for p, q in zip(parameters, alone, strict=True))
    assert counts[0] == counts[1]
    assert all(p == update for p, update in layouts)


@pytest.mark.parametrize("name", ["lars", "muon"])
def test_optimizers_continue_exactly_from_their_state(name):
    def steps(model, optimizer, numbers):
        for step in numbers:
            for i, p in enumerate(model.parameters()):
                p.grad = random(*p.shape, seed=10 * step + i)
            optimizer.step()

    config = OptimConfig(name=name, lr=0.1)
    straight = Toy()
    resumed = copy.deepcopy(straight)
    steps(straight, optim.build(straight, config), range(5))
    first, second = optim.build(resumed, config), optim.build(resumed, config)
    steps(resumed, first, range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(resumed, second, range(2, 5))
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, None], ids=["saved before", "saved by fused"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_that_other_kernels_saved_is_continued_by_those_of_the_device(name, fused, monkeypatch):
    """As on CUDA, where torch's optimizers are fused, which float16's scaler leaves the scaled gradients to."""

    def steps(weights, optimizer, numbers):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in numbers:
            scaler.scale((weights * random(4, 3, seed=step).float()).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    def build(weights, fused):
        monkeypatch.setattr(optim, "_fused", lambda _: fused)
        return optim.build(nn.ParameterList([weights]), OptimConfig(name=name, lr=0.1))

    straight, resumed = (nn.Parameter(random(4, 3, seed=9).float()) for _ in range(2))
    steps(straight, build(straight, None), range(4))
    first = build(resumed, None if fused else True)
    steps(resumed, first, range(2))
    second = build(resumed, fused)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(resumed, second, range(2, 4))
    assert [group["fused"] for group in second.param_groups] == [fused, fused]
    torch.testing.assert_close(resumed, straight)


def test_a_first_step_that_overflows_leaves_no_momentum_to_fused_sgd(monkeypatch):
    """Float16's scaler skips it. Torch would then take memory that was never written for the momentum."""
    weights = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
    for w, fused in zip(weights, (True, None), strict=True):
        monkeypatch.setattr(optim, "_fused", lambda _, fused=fused: fused)
        optimizer = optim.build(nn.ParameterList([w]), OptimConfig(name="sgd", lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (torch.inf, 1.0, 2.0):
            del [torch.full((1000,), 1000.0) for _ in range(50)][:]  # memory that is free, but not zero
            scaler.scale((factor * w).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as resumed
    torch.testing.assert_close(*weights)


def test_fused_sgd_keeps_momenta_of_trained_parameters_only(monkeypatch):
    """A target network of BYOL, for example, is not trained."""
    monkeypatch.setattr(optim, "_fused", lambda _: True)
    trained, frozen = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3), requires_grad=False)
    optimizer = optim.build(nn.ParameterList([trained, frozen]), OptimConfig(name="sgd", lr=0.1))
    assert set(optimizer.state) == {trained}
    before = copy.deepcopy(optimizer.state_dict())
    before["state"][1] = {"momentum_buffer": torch.zeros(4, 3)}  # as earlier versions saved it
    optimizer.load_state_dict(before)
    trained.sum().backward()
    optimizer.step()
    torch.testing.assert_close(trained.detach(), torch.full((4, 3), 0.9))
    assert torch.equal(frozen, torch.ones(4, 3))


def test_biases_and_norms_with_lars_equal_sgd_at_a_constant_rate():
    """torch multiplies by the rate after the momentum, which is the same while the rate is constant."""
    model = Toy()
    excluded = [model.linear.bias, model.norm.weight, model.norm.bias]
    optimizer = optim.build(model, OptimConfig(name="lars", weight_decay=0.1))
    copies = [nn.Parameter(p.detach().clone()) for p in excluded]
    gradients = [[random(*p.shape, seed=10 * i + step) for step in range(4)] for i, p in enumerate(excluded)]
    run(optimizer, excluded, gradients, [0.2] * 4)
    run(torch.optim.SGD(copies, 0.2, momentum=0.9), copies, gradients, [0.2] * 4)
    for parameter, other in zip(excluded, copies, strict=True):
        torch.testing.assert_close(parameter.detach(), other.detach(), **EXACT)


def test_biases_and_norms_with_lars_equal_algorithm_1_without_adaptation():
    bias = random(6, seed=0)
    parameter = nn.Parameter(bias.clone())
    optimizer = optim.LARS([{"params": [parameter], "adapt": False, "weight_decay": 0.0}], 1.0)
    gradients = [random(6, seed=1 + step) for step in range(5)]
    run(optimizer, [parameter], [gradients], RATES)
    expected = algorithm_1(bias.tolist(), [g.tolist() for g in gradients], RATES, 1.0, 0.0, 0.9, adapt=False)
    torch.testing.assert_close(parameter.detach(), torch.tensor(expected, dtype=torch.float64), **EXACT)


# --- parameter groups -------------------------------------------------------------------------------------------------


def bias_and_norm_parameters(model: nn.Module) -> set[int]:
    """The ids of these parameters, found by the type of their layer and their name."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    found = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    return found | {id(p) for name, p in model.named_parameters() if name.endswith("bias")}


@pytest.mark.parametrize(("backbone", "head_batch_norm"), [("resnet18", True), ("vit_b_16", False)])
def test_only_biases_and_norms_have_no_weight_decay(backbone, head_batch_norm):
    with torch.device("meta"):
        config = ModelConfig(backbone=backbone, stem="imagenet", head_batch_norm=head_batch_norm)
        model = Network(config, 32, 0, (0.5,) * 3, (0.5,) * 3)
    for name in optim.OPTIMIZERS:
        groups = optim.build(model, OptimConfig(name=name, weight_decay=0.01)).param_groups
        decayed = [id(p) for group in groups if group["weight_decay"] == 0.01 for p in group["params"]]
        free = [id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]]
        assert set(free) == bias_and_norm_parameters(model)
        assert sorted(decayed + free) == sorted(id(p) for p in model.parameters())  # each parameter once
        if name == "lars":
            assert all(group["adapt"] == (group["weight_decay"] > 0) for group in groups)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_biases_and_norms_have_weight_decay_on_request(name):
    optimizer = optim.build(Toy(), OptimConfig(name=name, weight_decay=0.01, decay_bias_and_norm=True))
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)
    if name == "lars":
        assert all(group["adapt"] for group in optimizer.param_groups)


def test_build_passes_on_the_settings():
    config = {"lr": 0.123, "momentum": 0.7, "trust": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.01}
    lars, sgd, adamw = (optim.build(Toy(), OptimConfig(name=name, **config)) for name in ("lars", "sgd", "adamw"))
    assert isinstance(lars, optim.LARS)
    assert (lars.param_groups[0]["momentum"], lars.param_groups[0]["trust"]) == (0.7, 0.02)
    assert sgd.param_groups[1]["momentum"] == 0.7
    assert adamw.param_groups[0]["betas"] == (0.8, 0.95)
    assert all(group["lr"] == 0.123 for o in (lars, sgd, adamw) for group in o.param_groups)


# --- the learning rate ------------------------------------------------------------------------------------------------


def rates(config: OptimConfig, total: int, per_epoch: int = 10, batch: int = 512) -> list[float]:
    return [optim.learning_rate(config, batch, step, total, per_epoch) for step in range(total)]


@pytest.mark.parametrize("schedule", list(optim.SCHEDULES))
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 3.0])
def test_the_warm_up_is_linear_and_ends_exactly_at_the_peak(warmup_epochs, schedule):
    config = OptimConfig(lr=0.3, warmup_epochs=warmup_epochs, schedule=schedule)
    warmup, peak = round(10 * warmup_epochs), 0.6
    values = rates(config, 100)
    assert values[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    if warmup:
        assert values[warmup - 1] == peak
        assert values[0] > 0  # the first step is not wasted
    assert values[warmup] == peak
    assert max(values) == peak


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_cosine_equals_torch_and_ends_near_zero(warmup_epochs):
    config = OptimConfig(schedule="cosine", warmup_epochs=warmup_epochs)
    after = rates(config, 200)[10 * warmup_epochs :]
    assert all(a > b for a, b in itertools.pairwise(after))
    n, peak = len(after), after[0]
    assert after[n // 2] == pytest.approx(peak / 2)
    assert 0 < after[-1] < 1e-3 * peak  # the peak times (pi / n)^2 / 4
    torch_rates = []
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n)
    for _ in range(n):
        torch_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert after == pytest.approx(torch_rates, rel=1e-9)  # torch computes it recursively


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant_schedules_stay_at_the_peak_after_the_warm_up(schedule):
    after = rates(OptimConfig(schedule=schedule, warmup_epochs=1), 50)[10:]
    assert set(after) == {0.6}


def test_a_warm_up_longer_than_the_run_reaches_the_peak_at_the_end():
    values = rates(OptimConfig(warmup_epochs=10), 30)
    assert values == pytest.approx([0.6 * (step + 1) / 30 for step in range(30)])


@pytest.mark.parametrize(
    ("scaling", "batch", "expected"),
    [
        ("none", 4096, 0.3),
        ("linear", 256, 0.3),
        ("linear", 4096, 4.8),  # paper: 0.3 * batch / 256
        ("linear", 64, 0.075),
        ("sqrt", 256, 0.3),
        ("sqrt", 1024, 0.6),
        ("sqrt", 64, 0.15),
    ],
)
def test_peak_rate_scales_with_the_batch(scaling, batch, expected):
    config = OptimConfig(lr=0.3, lr_scaling=scaling)
    assert optim.peak_rate(config, batch) == pytest.approx(expected)
    assert rates(config, 200, batch=batch)[100] == pytest.approx(expected)


def test_square_root_scaling_gives_the_rate_of_the_paper():
    """Appendix B.1: 0.075 * sqrt(batch)."""
    config = OptimConfig(lr=0.075 * 16, lr_scaling="sqrt")
    assert optim.peak_rate(config, 1024) == pytest.approx(0.075 * math.sqrt(1024))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("factor", "patience"), [(0.1, 10), (0.5, 0), (0.7, 3)])
def test_plateau_equals_the_scheduler_of_torch(factor, patience, seed):
    generator = torch.Generator().manual_seed(seed)
    falling = torch.linspace(5, 4, 120) + 0.3 * torch.rand(120, generator=generator)
    losses = [*falling.tolist(), *[4.0, 4.0 - 1e-5, 4.0 - 5e-4] * 15]  # ends with gains around the threshold
    ours = optim.Plateau(OptimConfig(schedule="plateau", plateau_factor=factor, plateau_patience=patience))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, eps=0.0)
    scales = []
    for loss in losses:
        ours.update(loss)
        reference.step(loss)
        scales.append(ours.scale)
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(set(scales)) > 2  # the rate fell more than once


def test_plateau_lowers_the_rate_where_a_negative_loss_stops_falling():
    """As with simsiam, whose loss is a negative cosine."""
    ours = optim.Plateau(OptimConfig(schedule="plateau", plateau_factor=0.5, plateau_patience=2))
    scales = []
    for loss in [0.1, -0.5, -0.6, -0.6, -0.60003, -0.59, -0.7, -0.7, -0.6, -0.7]:  # -0.60003 is no improvement
        ours.update(loss)
        scales.append(ours.scale)
    assert scales == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_continues_exactly_from_its_state():
    config = OptimConfig(schedule="plateau", plateau_factor=0.5, plateau_patience=2)
    losses = [3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 2.0, 2.0, 2.0, 2.0]
    straight = optim.Plateau(config)
    for loss in losses:
        straight.update(loss)
    for stop in range(len(losses)):
        first, second = optim.Plateau(config), optim.Plateau(config)
        for loss in losses[:stop]:
            first.update(loss)
        second.load_state_dict(first.state_dict())
        for loss in losses[stop:]:
            second.update(loss)
        assert second.state_dict() == straight.state_dict()


def test_set_rate_reaches_every_group():
    optimizer = optim.build(Toy(), OptimConfig())
    optim.set_rate(optimizer, 0.0123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0123, 0.0123]
