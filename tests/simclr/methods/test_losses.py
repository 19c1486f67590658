"""The losses of all methods against their definitions in plain loops, and against lightly's where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr.methods import METHODS
from simclr.methods.base import Method, spread
from simclr.methods.imix import KINDS
from simclr.methods.pairs import semi_hard as mined_negatives
from simclr.model import ModelConfig, Network

N, D = 6, 5
EXACT = {"atol": 1e-10, "rtol": 1e-10}
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
SOME_LABELS = torch.tensor([0, -1, 0, 2, 1, -1])  # for methods that don't need all


def method_of(name: str, **settings: Any) -> Method:
    """A method around a small network with D outputs, in float64."""
    network = Network(ModelConfig(backbone="resnet10", width=0.125, out_dim=D), 8, 0, (0.5,) * 3, (0.5,) * 3)
    kind = METHODS[name]
    return kind(kind.section(**settings), network, fused=True).double()


def embeddings_of(per_image: int = 2, seed: int = 0) -> Tensor:
    """Embeddings (per_image x N x D, float64) whose views resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return image + 0.7 * torch.randn(per_image, N, D, generator=generator, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def pairs(z: Tensor) -> list[tuple[float, list[float]]]:
    """For each view and each other view of its image: their similarity, and those to all views of other images."""
    views = [(view, image) for view in range(len(z)) for image in range(N)]
    return [
        (
            cosine(z[view, image], z[positive, image]),
            [cosine(z[view, image], z[other]) for other in views if other[1] != image],
        )
        for view, image in views
        for positive in range(len(z))
        if positive != view
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def semi_hard(positive: float, negatives: list[float]) -> list[float]:
    easier = [negative for negative in negatives if negative < positive]
    return [max(easier) if easier else min(negatives)]


def nt_logistic(z: Tensor, temperature: float, mined: bool) -> float:
    terms = []
    for positive, negatives in pairs(z):
        chosen = semi_hard(positive, negatives) if mined else negatives
        repulsion = np.mean([math.log(sigmoid(-negative / temperature)) for negative in chosen])
        terms.append(-math.log(sigmoid(positive / temperature)) - repulsion)
    return float(np.mean(terms))


def margin(z: Tensor, width: float, mined: bool) -> float:
    terms = []
    for positive, negatives in pairs(z):
        chosen = semi_hard(positive, negatives) if mined else negatives
        terms.append(np.mean([max(negative - positive + width, 0) for negative in chosen]))
    return float(np.mean(terms))


def dcl(z: Tensor, temperature: float) -> float:
    terms = [
        -positive / temperature + math.log(sum(math.exp(negative / temperature) for negative in negatives))
        for positive, negatives in pairs(z)
    ]
    return float(np.mean(terms))


def supcon(z: Tensor, temperature: float) -> float:
    rows, labels, terms = z.flatten(0, 1), LABELS.repeat(len(z)).tolist(), []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        total = sum(math.exp(cosine(anchor, rows[j]) / temperature) for j in others)
        same = [j for j in others if labels[j] == labels[i]]
        terms.append(-np.mean([math.log(math.exp(cosine(anchor, rows[j]) / temperature) / total) for j in same]))
    return float(np.mean(terms))


def cross_entropy(z: Tensor) -> float:
    terms = []
    for view in z:
        for logits, label in zip(view.tolist(), LABELS.tolist(), strict=True):
            terms.append(math.log(sum(math.exp(x) for x in logits)) - logits[label])
    return float(np.mean(terms))


def crossed(e: Tensor) -> list[tuple[int, int]]:
    """The places of each view and of the targets of all other views, which follow after the views."""
    return [(view, len(e) // 2 + other) for view, other in permutations(range(len(e) // 2), 2)]


def byol(e: Tensor) -> float:
    terms = [np.mean([2 - 2 * cosine(e[view, i], e[target, i]) for i in range(N)]) for view, target in crossed(e)]
    return float(2 * np.mean(terms))  # for two views: of the first, and of the second


def simsiam(e: Tensor) -> float:
    return float(np.mean([-cosine(e[view, i], e[target, i]) for view, target in crossed(e) for i in range(N)]))


def of_pairs(loss: Callable[..., float], z: Tensor, *settings: float) -> float:
    """The mean of a loss of two views over all pairs of views."""
    return float(np.mean([loss(torch.stack(pair), *settings) for pair in combinations(z, 2)]))


def barlow(z: Tensor, weight: float) -> float:
    a, b = ((view.numpy() - view.numpy().mean(0)) / np.sqrt(view.numpy().var(0) + 1e-5) for view in z)
    total = 0.0
    for i in range(D):
        for j in range(D):
            c = float(np.mean(a[:, i] * b[:, j]))
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def vicreg(z: Tensor, invariance: float, variance: float, covariance: float) -> float:
    a, b = z.numpy()
    distance = float(((a - b) ** 2).mean())
    total = invariance * distance
    for view in (a, b):
        total += variance / 2 * float(np.maximum(0, 1 - np.sqrt(view.var(0, ddof=1) + 1e-4)).mean())
        c = np.cov(view.T)
        total += covariance * float((c**2).sum() - (np.diag(c) ** 2).sum()) / D
    return total


def emp(z: Tensor, weight: float, distortion: float) -> float:
    z = F.normalize(z, dim=2)
    mean, total = z.mean(0), 0.0
    for view in z.numpy():
        total -= np.linalg.slogdet(np.eye(D) + D / (N * distortion) * view.T @ view)[1] / 2
        total -= weight * np.mean([cosine(torch.from_numpy(view[i]), mean[i]) for i in range(N)])
    return float(total / len(z))


def imix(e: Tensor, temperature: float) -> float:
    views, terms = len(e) // 2, []
    for other in range(1, views):
        for i in range(N):
            share, exponentials = float(e[-1, i, 0]), [math.exp(cosine(e[0, i], z) / temperature) for z in e[other]]
            own = math.exp(cosine(e[0, i], e[other, i]) / temperature)
            second = math.exp(cosine(e[0, i], e[views + other - 1, i]) / temperature)
            total = sum(exponentials)
            terms.append(-share * math.log(own / total) - (1 - share) * math.log(second / total))
    return float(np.mean(terms))


def moco(e: Tensor, queue: Tensor, temperature: float) -> float:
    terms = []
    for query, key in crossed(e):
        for i in range(N):
            candidates = [
                cosine(e[query, i], e[key, i]),
                *(float(e[query, i] @ old / e[query, i].norm()) for old in queue),
            ]
            exponentials = [math.exp(c / temperature) for c in candidates]
            terms.append(-math.log(exponentials[0] / sum(exponentials)))
    return float(np.mean(terms))


def distill(e: Tensor, temperature: float, weight: float) -> float:
    taught, labelled = [], []
    for view, target in zip(e[: len(e) // 2], e[len(e) // 2 :], strict=True):
        for i, label in enumerate(SOME_LABELS.tolist()):
            student, teacher = ([math.exp(x / temperature) for x in logits] for logits in (view[i], target[i]))
            chances = zip(student, teacher, strict=True)
            taught.append(-sum(t / sum(teacher) * math.log(s / sum(student)) for s, t in chances))
            if label >= 0:
                logits = view[i].tolist()
                labelled.append(math.log(sum(math.exp(x) for x in logits)) - logits[label])
    return float(weight * np.mean(taught) + (1 - weight) * np.mean(labelled))


CASES: dict[str, tuple[str, int, dict[str, Any], Callable[[Tensor, Any], float]]] = {
    "nt_logistic": ("nt_logistic", 2, {"temperature": 0.3}, lambda e, _: nt_logistic(e, 0.3, mined=False)),
    "nt_logistic, semi-hard": ("nt_logistic", 2, {"semi_hard": True}, lambda e, _: nt_logistic(e, 0.5, mined=True)),
    "margin": ("margin", 2, {"margin": 0.8}, lambda e, _: margin(e, 0.8, mined=False)),
    "margin, semi-hard": ("margin", 2, {"semi_hard": True}, lambda e, _: margin(e, 0.5, mined=True)),
    "dcl": ("dcl", 2, {"temperature": 0.2}, lambda e, _: dcl(e, 0.2)),
    "supcon": ("supcon", 2, {"temperature": 0.4}, lambda e, _: supcon(e, 0.4)),
    "supervised": ("supervised", 2, {}, lambda e, _: cross_entropy(e)),
    "byol": ("byol", 4, {}, lambda e, _: byol(e)),
    "simsiam": ("simsiam", 4, {}, lambda e, _: simsiam(e)),
    "barlow": ("barlow", 2, {"redundancy": 0.05}, lambda e, _: of_pairs(barlow, e, 0.05)),
    "vicreg": (
        "vicreg",
        2,
        {"invariance": 5.0, "variance": 7.0, "covariance": 3.0},
        lambda e, _: of_pairs(vicreg, e, 5.0, 7.0, 3.0),
    ),
    "distill": ("distill", 4, {"temperature": 0.3}, lambda e, _: distill(e, 0.3, 1.0)),
    "distill, with labels": ("distill", 4, {"weight": 0.4}, lambda e, _: distill(e, 1.0, 0.4)),
    "emp": ("emp", 2, {"invariance": 3.0, "distortion": 0.3}, lambda e, _: emp(e, 3.0, 0.3)),
    "imix": ("imix", 4, {"temperature": 0.3}, lambda e, _: imix(e, 0.3)),
    "moco": ("moco", 4, {"queue": 9, "temperature": 0.3}, lambda e, method: moco(e, method.queue, 0.3)),
}


def test_every_method_has_a_case() -> None:
    assert {name for name, *_ in CASES.values()} == METHODS.keys() - {"simclr"}  # whose are in test_ntxent.py


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("views", [2, 3])
def test_a_loss_equals_its_definition_in_loops(case: str, views: int) -> None:
    name, per_image, settings, definition = CASES[case]
    method, embeddings = method_of(name, **settings), embeddings_of(per_image // 2 * views, seed=views)
    loss, figures = method.loss(embeddings, SOME_LABELS if name == "distill" else LABELS)
    torch.testing.assert_close(loss, torch.tensor(definition(embeddings, method), dtype=torch.float64), **EXACT)
    assert figures.shape == (len(method.figures),)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_equals_finite_differences(case: str) -> None:
    name, per_image, settings, _ = CASES[case]
    method, embeddings = method_of(name, **settings), embeddings_of(per_image)
    own = embeddings[:2]  # the rest are targets, which get no gradient

    def loss(z: Tensor) -> Tensor:
        return method.loss(torch.cat([z, embeddings[2:]]), LABELS)[0]

    assert torch.autograd.gradcheck(loss, own.clone().requires_grad_())


@pytest.mark.parametrize("name", ["byol", "moco", "simsiam"])
def test_targets_get_no_gradient(name: str) -> None:
    embeddings = embeddings_of(4).requires_grad_()
    method_of(name).loss(embeddings, LABELS)[0].backward()
    assert embeddings.grad is not None
    assert embeddings.grad[:2].abs().amax() > 0
    assert torch.equal(embeddings.grad[2:], torch.zeros(2, N, D, dtype=torch.float64))


@pytest.mark.parametrize("name", METHODS)
def test_the_chance_level_is_the_loss_of_collapsed_embeddings(name: str) -> None:
    method = method_of(name)
    chance = METHODS[name].chance(method.settings, N)
    if "train/loss" in chance:
        for views in (2, 3):
            count = 2 * views if name == "imix" else views
            loss, _ = method.loss(torch.ones(count, N, D, dtype=torch.float64), LABELS)
            assert float(loss) == pytest.approx(METHODS[name].chance(method.settings, N, views)["train/loss"])
        assert {f"train/{figure}" for figure in method.figures} >= chance.keys() - {"train/loss"}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed_as_their_shares_say(kind: str) -> None:
    u = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    mixed, share = KINDS[kind](torch.ones(50, 3, 16, 16), torch.zeros(50, 3, 16, 16), u)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), share)
    assert share.min() >= 0.5 - 0.05  # of a box in whole pixels
    assert share.max() <= 1
    assert len(mixed.unique()) == (2 if kind == "cutmix" else 50)


def test_imix_embeds_the_mixed_view_and_the_views_of_both_images() -> None:
    method = method_of("imix").float().eval()
    views = torch.rand(2, N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    embeddings = method.embed(views)
    torch.manual_seed(3)
    partner, u = torch.randperm(N), torch.rand(N, 3)
    share = (1 - u[:, 0] / 2).view(N, 1, 1, 1)
    images = torch.stack([share * views[0] + (1 - share) * views[0, partner], views[1], views[1, partner]])
    expected = torch.stack([method.network(each)[1] for each in images])
    torch.testing.assert_close(embeddings[:3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings[3], share.view(N, 1).expand(N, D))


def test_semi_hard_negatives_are_those_just_easier_than_the_positive() -> None:
    negatives = torch.tensor([[-math.inf, 0.2, 0.5, 0.9], [-math.inf, 0.95, 0.8, 0.9]])
    assert mined_negatives(torch.tensor([0.6, 0.7]), negatives).tolist() == pytest.approx([0.5, 0.8])


def test_spread_tells_collapse_from_all_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert float(spread(torch.randn(2, 4096, 32, generator=generator))) == pytest.approx(1, abs=0.02)
    assert float(spread(torch.ones(2, 64, 32))) == pytest.approx(0, abs=1e-6)


def test_the_queue_holds_the_newest_keys_first() -> None:
    method = method_of("moco", queue=20)
    old, embeddings = method.queue.clone(), embeddings_of(4)
    method.loss(embeddings, LABELS)
    method.after_step()
    torch.testing.assert_close(method.queue[: 2 * N], F.normalize(embeddings[2:].flatten(0, 1), dim=1))
    assert torch.equal(method.queue[2 * N :], old[: 20 - 2 * N])


@pytest.mark.parametrize(("name", "target"), [("byol", "target"), ("moco", "key_network")])
def test_a_target_network_follows_the_online_network(name: str, target: str) -> None:
    method = method_of(name, momentum=0.9)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in getattr(method, target).parameters()]
    method.loss(embeddings_of(4), LABELS)
    method.after_step()
    for p, b, online in zip(getattr(method, target).parameters(), before, method.network.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), 0.9 * b + 0.1 * online.detach())
        assert not p.requires_grad


def test_a_queue_is_not_spoiled_by_keys_that_overflowed() -> None:
    method, embeddings = method_of("moco", queue=20), embeddings_of(4)
    old = method.queue.clone()
    embeddings[3, 0, 0] = math.inf
    method.loss(embeddings, LABELS)
    method.after_step()
    assert torch.equal(method.queue, old)


def test_supervised_training_has_as_many_logits_as_classes() -> None:
    method, z = method_of("supervised", smoothing=0.1), embeddings_of().requires_grad_()
    method.check_labels(LABELS, ["a", "b", "c"])
    loss, (top1,) = method.loss(z, LABELS)
    targets = 0.9 * F.one_hot(LABELS, 3).double() + 0.1 / 3
    torch.testing.assert_close(loss, -(targets * z[:, :, :3].log_softmax(2)).sum(2).mean(), **EXACT)
    assert top1 == (z[:, :, :3].argmax(2) == LABELS).double().mean()
    loss.backward()
    assert z.grad is not None
    assert torch.equal(z.grad[:, :, 3:], torch.zeros(2, N, D - 3, dtype=torch.float64))


def test_the_weight_of_barlow_twins_follows_the_number_of_features() -> None:
    z = embeddings_of()
    own, published = (method_of("barlow", **settings).loss(z, LABELS)[0] for settings in ({}, {"redundancy": 8.192}))
    torch.testing.assert_close(own, published)  # 0.005 for 8,192 features is 8.192 for 5


@pytest.mark.parametrize("name", ["byol", "simsiam", "moco"])
def test_the_branch_of_the_targets_has_no_predictor_and_its_own_network(name: str) -> None:
    method = method_of(name).float().eval()
    target = {"byol": "target", "moco": "key_network"}.get(name, "network")
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.mul_(1.1)  # so that a target network differs
    views = torch.rand(2, N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    embeddings = method.embed(views)
    for view, (online, other) in zip(views, zip(*embeddings.chunk(2), strict=True), strict=True):
        z = method.network(view)[1]
        expected = z if name == "moco" else method.predictor(z)  # type: ignore[operator]
        torch.testing.assert_close(online, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, getattr(method, target)(view)[1], rtol=1e-4, atol=1e-5)
    embeddings.chunk(2)[1].sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in method.parameters())


def test_losses_equal_those_of_lightly() -> None:
    losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z1, z2 = embeddings_of(2)
    e = embeddings_of(4)

    def ours(name: str, embeddings: Tensor, **settings: Any) -> Tensor:
        return method_of(name, **settings).loss(embeddings, LABELS)[0]

    def standardised(z: Tensor) -> Tensor:
        return F.batch_norm(z, None, None, training=True)

    torch.testing.assert_close(ours("dcl", torch.stack([z1, z2]), temperature=0.2), losses.DCLLoss(0.2)(z1, z2))
    vicreg = losses.VICRegLoss(lambda_param=5.0, mu_param=7.0, nu_param=3.0)(z1, z2)
    torch.testing.assert_close(
        ours("vicreg", torch.stack([z1, z2]), invariance=5.0, variance=7.0, covariance=3.0), vicreg
    )
    # lightly standardises both views together, the paper each by itself. The same once both are standardised.
    both = torch.stack([standardised(z1), standardised(z2)])
    torch.testing.assert_close(
        ours("barlow", both, redundancy=0.05), losses.BarlowTwinsLoss(0.05)(*both), rtol=1e-4, atol=1e-4
    )
    negative_cosine = losses.NegativeCosineSimilarity()
    simsiam = (negative_cosine(e[0], e[3]) + negative_cosine(e[1], e[2])) / 2
    torch.testing.assert_close(ours("simsiam", e), simsiam)
    # lightly 1.6 adds the coding rate to the loss, which the paper subtracts, so its parts are compared.
    emp, z = pytest.importorskip("lightly.loss.emp_ssl_loss"), F.normalize(e.float(), dim=2)
    expected = 3 * emp.invariance_loss(z) - emp.tcr_loss(z, 0.3)
    torch.testing.assert_close(ours("emp", e, invariance=3.0, distortion=0.3).float(), expected)
    torch.testing.assert_close(ours("byol", e), 4 + 4 * simsiam)  # the mean of two negative cosines
    torch.testing.assert_close(ours("simclr", torch.stack([z1, z2]), temperature=0.3), losses.NTXentLoss(0.3)(z1, z2))
    moco = method_of("moco", queue=9, temperature=0.3)
    queued = losses.NTXentLoss(0.3, memory_bank_size=(9, D))
    queued.memory_bank.bank = moco.queue
    torch.testing.assert_close(moco.loss(e, LABELS)[0], (queued(e[0], e[3]) + queued(e[1], e[2])) / 2)
    if hasattr(losses, "SupConLoss"):  # lightly 1.6 has none
        supcon = losses.SupConLoss(temperature=0.4)(torch.stack([z1, z2], 1), LABELS)
        torch.testing.assert_close(ours("supcon", torch.stack([z1, z2]), temperature=0.4), supcon)


def test_z_is_as_wide_as_the_head_says() -> None:
    for head, width in (("mlp", D), ("linear", D), ("none", 64)):
        config = ModelConfig(backbone="resnet10", width=0.125, out_dim=D, head=head)
        network: nn.Module = Network(config, 8, 0, (0.5,) * 3, (0.5,) * 3)
        assert network.z_width == width == network(torch.zeros(2, 3, 8, 8))[1].shape[1]
