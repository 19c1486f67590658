"""NT-Xent against Algorithm 1 of the paper in plain loops, in low precision and for degenerate embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import profile_peak
from simclr.methods import ntxent
from simclr.methods.ntxent import (
    chance_accuracies,
    chance_loss,
    contrast,
    contrastive_accuracy,
    nt_xent,
    positives,
    similarities,
)

EXACT = {"atol": 1e-12, "rtol": 1e-12}  # for float64 sums in a different order
SINGLE = {"atol": 1e-6, "rtol": 1e-5}  # for float32 sums


def views(n: int, d: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views with similar rows, but not so similar that every loss is near zero."""
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z1.to(dtype), (z1 + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype)


def loss_of(z1, z2, temperature: float = 0.5, normalize: bool = True, include_self: bool = False) -> torch.Tensor:
    return nt_xent(similarities(torch.stack([z1, z2]), normalize=normalize), temperature, include_self=include_self)


def paired_rows(z1: torch.Tensor, z2: torch.Tensor) -> list[list[float]]:
    """z_1, z_2, ... of Algorithm 1, where the views of image k are rows 2k - 1 and 2k, counted from one."""
    return [row.tolist() for pair in zip(z1, z2, strict=True) for row in pair]


def similarity_of(a: list[float], b: list[float], normalize: bool) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b)) if normalize else dot


def algorithm_1(z1, z2, temperature: float, normalize: bool = True, include_self: bool = False) -> float:
    z = [None, *paired_rows(z1, z2)]
    n = len(z1)
    s = {(i, j): similarity_of(z[i], z[j], normalize) for i in range(1, 2 * n + 1) for j in range(1, 2 * n + 1)}

    def pair_loss(i: int, j: int) -> float:
        others = [k for k in range(1, 2 * n + 1) if include_self or k != i]
        denominator = sum(math.exp(s[i, k] / temperature) for k in others)
        return -math.log(math.exp(s[i, j] / temperature) / denominator)

    return sum(pair_loss(2 * k - 1, 2 * k) + pair_loss(2 * k, 2 * k - 1) for k in range(1, n + 1)) / (2 * n)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 5.0])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_loss_equals_algorithm_1_in_loops(n, temperature, normalize, include_self):
    z1, z2 = views(n)
    expected = torch.tensor(algorithm_1(z1, z2, temperature, normalize, include_self), dtype=torch.float64)
    torch.testing.assert_close(loss_of(z1, z2, temperature, normalize, include_self), expected, **EXACT)


def test_including_self_similarity_raises_the_loss():
    z1, z2 = views(6)
    assert loss_of(z1, z2, include_self=True) > loss_of(z1, z2) + 0.1


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_gradient_is_correct(normalize, include_self):
    z1, z2 = (z.requires_grad_() for z in views(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: loss_of(a, b, 0.5, normalize, include_self), (z1, z2))


def test_the_loss_leaves_the_similarities_unchanged():
    similarity = similarities(torch.stack(views(4)))
    before = similarity.clone()
    nt_xent(similarity, 1.0)
    assert torch.equal(similarity, before)


@pytest.mark.parametrize("under_autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
def test_loss_and_gradient_are_finite_and_accurate_in_every_precision(temperature, dtype, under_autocast):
    z1, z2 = (z.requires_grad_() for z in views(16, 32, dtype=dtype))
    low = torch.bfloat16 if dtype == torch.float32 else dtype
    with torch.autocast("cpu", dtype=low, enabled=under_autocast):
        loss = loss_of(z1, z2, temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z1.grad.dtype == dtype
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()
    assert z1.grad.abs().max() > 0
    # The same rounded embeddings in float64. The error of float32 cosines is about 1e-7, divided by the temperature.
    expected = loss_of(z1.detach().double(), z2.detach().double(), temperature)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6 / temperature, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_large_half_precision_embeddings_do_not_overflow(normalize):
    """Squares and dot products exceed 65,504, the largest float16."""
    z1, z2 = ((300 * z).half().requires_grad_() for z in views(4, 64))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = loss_of(z1, z2, 1.0 if normalize else 1000.0, normalize)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad.isfinite().all()


def test_zero_embeddings_give_the_chance_loss_and_a_finite_gradient():
    z1, z2 = (torch.zeros(4, 8, requires_grad=True) for _ in range(2))
    loss = loss_of(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), abs=1e-6)
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("n", [2, 5, 64])
def test_uninformative_embeddings_give_the_chance_loss(n, temperature):
    identical = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(n, -1)
    orthogonal = torch.eye(2 * n)
    for z1, z2 in ((identical, identical), (orthogonal[:n], orthogonal[n:])):
        # The error of float32 cosines of equal rows is 1e-7, divided by the temperature.
        assert loss_of(z1, z2, temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    assert chance_loss(n) == math.log(2 * n - 1)
    assert chance_loss(n, include_self=True) == math.log(2 * n)


def test_loss_does_not_depend_on_which_view_is_first_nor_on_the_order_of_the_images():
    z1, z2 = views(7, dtype=torch.float32)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    base = loss_of(z1, z2)
    torch.testing.assert_close(loss_of(z2, z1), base, **SINGLE)
    torch.testing.assert_close(loss_of(z1[order], z2[order]), base, **SINGLE)
    assert abs(loss_of(z1, z2[order]) - base) > 0.1  # but it does on which rows go together


def test_normalized_loss_ignores_the_length_of_embeddings_and_the_plain_one_does_not():
    z1, z2 = views(5)
    lengths = torch.linspace(0.1, 9, 5, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(loss_of(lengths * z1, 3 * z2), loss_of(z1, z2), **EXACT)
    assert abs(loss_of(lengths * z1, 3 * z2, normalize=False) - loss_of(z1, z2, normalize=False)) > 0.1


def test_similarities_put_view_one_first_and_are_cosines():
    z1, z2 = views(3)
    expected = torch.nn.functional.cosine_similarity(z1[1], z2[2], dim=0)
    similarity = similarities(torch.stack([z1, z2]))
    assert similarity.shape == (6, 6)
    torch.testing.assert_close(similarity[1, 5], expected, **EXACT)
    torch.testing.assert_close(similarities(torch.stack([z1, z2]), normalize=False)[4, 0], z2[1] @ z1[0], **EXACT)
    assert positives(3, torch.device("cpu")).tolist() == [[3, 4, 5, 0, 1, 2]]


# --- contrastive accuracy ---------------------------------------------------------------------------------------------


def accuracy_in_loops(similarity: torch.Tensor, k: int) -> float:
    """Sort each row's 2N - 1 candidates, of equal ones the positive last, and look for the positive in the first k."""
    rows = similarity.tolist()
    n = len(rows) // 2
    hits = 0
    for i, row in enumerate(rows):
        positive = (i + n) % (2 * n)
        ranked = sorted((j for j in range(2 * n) if j != i), key=lambda j, row=row, p=positive: (-row[j], j == p))
        hits += positive in ranked[:k]
    return hits / (2 * n)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("n", [2, 3, 9, 40])
def test_contrastive_accuracy_equals_sorting_in_loops(n, k):
    z1, z2 = views(n, 4)
    for normalize in (True, False):  # without it a row need not be its own nearest
        similarity = similarities(torch.stack([z1, z2]), normalize=normalize)
        assert contrastive_accuracy(similarity, (k,)).item() == pytest.approx(accuracy_in_loops(similarity, k))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_contrastive_accuracy_counts_ties_against_the_row(k):
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 3, (16, 16), generator=generator).float()
    assert contrastive_accuracy(similarity, (k,)).item() == pytest.approx(accuracy_in_loops(similarity, k))


@pytest.mark.parametrize("n", [4, 37, 128])
def test_contrastive_accuracy_of_a_collapsed_batch_is_zero(n):
    z = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(n, -1)
    assert contrastive_accuracy(similarities(torch.stack([z, z]))).tolist() == [0.0, 0.0]


def test_contrastive_accuracy_of_two_images():
    """Each row has three candidates, so top-5 is always right and top-1 only if the positive is strictly nearest."""
    z1, z2 = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert contrastive_accuracy(similarities(torch.stack([z1, z2]))).tolist() == [1.0, 1.0]
    assert contrastive_accuracy(similarities(torch.stack([z1, z2.flip(0)]))).tolist() == [0.0, 1.0]
    same = z1[:1].expand(2, 2, -1)
    assert contrastive_accuracy(similarities(same)).tolist() == [0.0, 1.0]


def test_contrastive_accuracy_gives_one_value_for_each_k_in_order():
    similarity = similarities(torch.stack(views(20, 4)))
    top1, top5, top9 = contrastive_accuracy(similarity, (1, 5, 9)).tolist()
    assert 0 < top1 < top5 < top9 < 1
    assert contrastive_accuracy(similarity, (9, 1)).tolist() == [top9, top1]


def test_contrastive_accuracy_of_independent_embeddings_is_that_of_guessing():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 500, 16, generator=generator)
    top5 = contrastive_accuracy(similarities(torch.stack([z1, z2])), (5,)).item()
    assert top5 == pytest.approx(5 / 999, abs=4 * math.sqrt(5 / 999 / 1000))  # four standard errors


def test_loss_and_accuracy_stay_on_the_device_of_the_embeddings():
    """Fake tensors raise an error if an operation mixes devices."""
    with FakeTensorMode():
        similarity = similarities(torch.rand(2, 4, 8, device="cuda"))
        assert nt_xent(similarity, 0.5).device.type == "cuda"
        assert contrastive_accuracy(similarity).device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_on_the_accelerator_under_autocast_equals_the_cpu(dtype):
    device = torch.accelerator.current_accelerator()
    z1, z2 = views(64, 128, dtype=torch.float32)
    with torch.autocast(device.type, dtype=dtype):
        loss = loss_of(z1.to(device), z2.to(device), 0.1)
    # Ten times the rounding of cosines. Half precision anywhere would be off by 1e-3 or more.
    torch.testing.assert_close(loss.cpu(), loss_of(z1, z2, 0.1), atol=1e-4, rtol=0)


@pytest.fixture(params=[1, 3, 5, 64])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Computes in blocks of this many rows, however few embeddings there are."""
    monkeypatch.setattr(ntxent, "BLOCK", request.param)
    monkeypatch.setattr(ntxent, "PLAIN_ROWS", 0)
    return int(request.param)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 5.0])
def test_blocks_give_the_plain_loss_gradient_and_accuracy(blocks, temperature, normalize, include_self):
    z1, z2 = (z.requires_grad_() for z in views(7))
    value, top = contrast(torch.stack([z1, z2]), temperature, normalize=normalize, include_self=include_self)
    gradients = torch.autograd.grad(3 * value, (z1, z2))
    plain = loss_of(z1, z2, temperature, normalize, include_self)
    torch.testing.assert_close(value, plain, **EXACT)
    for mine, theirs in zip(gradients, torch.autograd.grad(3 * plain, (z1, z2)), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
    assert torch.equal(top, contrastive_accuracy(similarities(torch.stack([z1, z2]), normalize=normalize).detach()))


def test_the_gradient_of_blocks_is_correct(blocks):
    z1, z2 = (z.requires_grad_() for z in views(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: contrast(torch.stack([a, b]), 0.5)[0], (z1, z2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
def test_blocks_give_a_finite_float32_loss_in_every_precision(blocks, temperature, dtype):
    z1, z2 = views(9, dtype=dtype)
    z1.requires_grad_()
    z = torch.stack([z1, z2])
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = contrast(z, temperature)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss_of(z1, z2, temperature), **SINGLE)
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


def test_collapsed_embeddings_score_zero_in_blocks(blocks):
    same = torch.ones(6, 4)
    value, top = contrast(torch.stack([same, same]), 0.5)
    assert top.tolist() == [0, 0]
    assert value.item() == pytest.approx(chance_loss(6), abs=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("n", [500, 1100])  # as one matrix, and in blocks of which some are cut off
def test_equal_embeddings_are_ties_however_their_products_are_summed(n, width, normalize):
    for seed in range(3):
        same = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)).expand(n, -1)
        assert contrast(torch.stack([same, same]), 0.5, normalize=normalize)[1].tolist() == [0, 0]


def test_memory_of_blocks_grows_with_n_not_with_its_square():
    def peak(n: int) -> float:
        z1, z2 = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
        return profile_peak(lambda: contrast(torch.stack([z1, z2]), 0.5)[0].backward()) / 2**20

    small, large = peak(1024), peak(4096)
    assert large < 2 * small < 64  # MiB, where the matrix alone grows from 16 to 256


# --- more than two views ----------------------------------------------------------------------------------------------


def many_views(v: int, n: int = 5, d: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(v)
    image = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return image + torch.randn(v, n, d, generator=generator, dtype=torch.float64)


def loss_of_many_in_loops(z: torch.Tensor, temperature: float, normalize: bool, include_self: bool) -> float:
    """For every view and each other view of its image: -log of the softmax over all views but itself."""
    rows = [(view, image) for view in range(len(z)) for image in range(z.shape[1])]
    terms = []
    for row in rows:
        candidates = {
            other: similarity_of(z[row].tolist(), z[other].tolist(), normalize) / temperature
            for other in rows
            if include_self or other != row
        }
        total = math.log(sum(math.exp(logit) for logit in candidates.values()))
        terms += [total - logit for other, logit in candidates.items() if other[1] == row[1] and other != row]
    return sum(terms) / len(terms)


def hits_of_many_in_loops(z: torch.Tensor, k: int, normalize: bool) -> float:
    """How often another view of the same image is among the k most similar of all other views."""
    rows = [(view, image) for view in range(len(z)) for image in range(z.shape[1])]
    hits = 0
    for row in rows:
        others = [other for other in rows if other != row]
        others.sort(key=lambda other, row=row: -similarity_of(z[row].tolist(), z[other].tolist(), normalize))
        hits += any(other[1] == row[1] for other in others[:k])
    return hits / len(rows)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("form", ["plain", "blocks"])
@pytest.mark.parametrize("count", [3, 4])
def test_the_loss_of_many_views_equals_loops(count, form, normalize, include_self, monkeypatch):
    if form == "blocks":
        monkeypatch.setattr(ntxent, "BLOCK", 3)
        monkeypatch.setattr(ntxent, "PLAIN_ROWS", 0)
    z = many_views(count)
    value, top = contrast(z, 0.5, normalize=normalize, include_self=include_self)
    assert value.item() == pytest.approx(loss_of_many_in_loops(z, 0.5, normalize, include_self), abs=1e-12)
    assert top.tolist() == pytest.approx([hits_of_many_in_loops(z, k, normalize) for k in (1, 5)])
    assert torch.autograd.gradcheck(
        lambda z: contrast(z, 0.5, normalize=normalize, include_self=include_self)[0],
        z[:, :3, :2].clone().requires_grad_(),
    )


def test_collapsed_views_give_the_chance_loss_and_guessing_is_what_sampling_gives():
    same = torch.ones(4, 6, 3)
    value, top = contrast(same, 0.5)
    assert value.item() == pytest.approx(chance_loss(6, 4), abs=1e-6)
    assert top.tolist() == [0, 0]
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([contrast(torch.randn(4, 6, 16, generator=generator), 0.5)[1] for _ in range(300)]).mean(0)
    assert found.tolist() == pytest.approx(list(chance_accuracies(6, 4).values()), abs=0.03)
    assert chance_accuracies(2) == {"train/contrastive_top1": 1 / 3, "train/contrastive_top5": 1.0}
