"""A training step: its gradient, micro-batches, and what happens when memory runs out."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from simclr.build import build_model
from simclr.data.dataset import Dataset
from simclr.errors import UnusableCheckpoint, UserError
from simclr.methods.simclr import SimCLR
from simclr.train.loop import load_batches
from simclr.train.step import (
    Training,
    accumulate,
    accumulate_within_memory,
    build_method,
    copies,
    make_training,
    make_views,
    start_training,
    train_step,
)
from simclr.views import apply, batch_views, draw
from tests.helpers import tiny
from tests.simclr.train.helpers import Operations

CPU = torch.device("cpu")
SMALL = {"backbone": "resnet10"}


def first_batch(training: Training, digits: Dataset, step: int = 0) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch."""
    size = training.config.train.batch_size
    rows = slice(step * size, (step + 1) * size)
    return torch.from_numpy(digits.images[rows]), torch.from_numpy(digits.labels[rows])


def exact(digits: Dataset, dropout: bool = False, **train: object) -> Training:
    """A training in float64, where results that differ only in the order of sums agree to ten digits."""
    config = tiny(train=train, model=SMALL, optim={"name": "sgd", "lr": 0.1})
    network = build_model(config, digits, CPU).double()
    if dropout:
        network.head.append(nn.Dropout(0.5))
    return make_training(config, build_method(config, network), torch.float32, digits.digest)


def three_steps(training: Training, digits: Dataset) -> Training:
    for step in range(3):
        train_step(training, *first_batch(training, digits, step))
    return training


def equal(a: Training, b: Training) -> bool:
    """Whether weights and buffers agree up to rounding."""
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)


def test_a_step_follows_the_gradient_of_the_loss_written_out(digits: Dataset) -> None:
    config = tiny(
        optim={"name": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0}, train={"batch_size": 8}, model=SMALL
    )
    training = start_training(config, digits, CPU)
    reference = build_model(config, digits, CPU).train()
    images, labels = first_batch(training, digits)
    first, second = batch_views(images, config.pipelines(), config.seed, 0)(slice(None))
    z = torch.nn.functional.normalize(reference(torch.cat([first, second]))[1], dim=1)
    terms = []
    for i in range(16):
        others = torch.stack([z[i] @ z[k] for k in range(16) if k != i]) / 0.2
        terms.append(-(z[i] @ z[(i + 8) % 16] / 0.2 - others.exp().sum().log()))
    loss = torch.stack(terms).mean()
    loss.backward()
    report = train_step(training, images, labels)
    assert report[0].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(training.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_fused_and_split_views_differ_only_by_batch_norm(digits: Dataset) -> None:
    def loss(views: str, training_mode: bool) -> float:
        training = start_training(tiny(train={"views": views, "batch_size": 16}, model=SMALL), digits, CPU)
        training.model.train(training_mode)
        return train_step(training, *first_batch(training, digits))[0].item()

    assert loss("fused", True) != pytest.approx(loss("split", True), rel=1e-4)
    assert loss("fused", False) == pytest.approx(loss("split", False), rel=1e-5)


@pytest.mark.parametrize("views", ["fused", "split"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(views: str, digits: Dataset) -> None:
    trainings = {}
    for size in (32, 16, 4):
        training = exact(digits, batch_size=32, micro_batch=size, norm_batch=4, views=views)
        training.model.eval()  # without batch norm
        training.group = None
        images, labels = first_batch(training, digits)
        accumulate(training, make_views(training.config, images, 0), labels)
        trainings[size] = training
    for size in (16, 4):
        for mine, theirs in zip(trainings[size].model.parameters(), trainings[32].model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-12)


def test_a_batch_in_one_piece_goes_through_the_network_once(digits: Dataset) -> None:
    passes = []
    for size in (32, 8):
        training = exact(digits, batch_size=32, micro_batch=size, norm_batch=8)
        training.model.register_forward_pre_hook(lambda *_: passes.append(1))
        images, labels = first_batch(training, digits)
        accumulate(training, make_views(training.config, images, 0), labels)
        assert len(passes) == {32: 4, 8: 8}[size]  # each group of 8 once, or once without and once with a graph
        passes.clear()


@pytest.mark.parametrize("dropout", [False, True])
def test_with_norm_batch_the_micro_batch_changes_nothing(dropout: bool, digits: Dataset) -> None:
    whole, half, quarter = (
        three_steps(exact(digits, dropout, batch_size=16, micro_batch=size, norm_batch=4), digits)
        for size in (16, 8, 4)
    )
    assert equal(half, whole)
    assert equal(quarter, whole)
    assert not equal(whole, exact(digits, dropout, batch_size=16))  # they have moved


def test_running_averages_are_updated_once_by_each_group(digits: Dataset) -> None:
    training = three_steps(exact(digits, batch_size=16, micro_batch=4, norm_batch=4), digits)
    norm = next(m for m in training.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 3 * 4


def test_the_group_of_batch_norm_decides_the_result_and_is_in_the_key(digits: Dataset) -> None:
    whole, parts = exact(digits, batch_size=16), exact(digits, batch_size=16, norm_batch=8)
    assert not equal(three_steps(whole, digits), three_steps(parts, digits))
    assert whole.config.key() != parts.config.key()


def limit_memory(monkeypatch: pytest.MonkeyPatch, limit: int, spared: int = 0) -> None:
    """Memory for the graphs of `limit` images. More run out of it, from the call after `spared` calls on."""
    calls, held, embed = count(), [], SimCLR.embed

    def embed_within_limit(method: SimCLR, views: Tensor) -> Tensor:
        z = embed(method, views)
        held[:] = [n for n in held if n() is not None]
        if torch.is_grad_enabled():
            held.append(weakref.ref(z))
            if next(calls) >= spared and len(held) * views.shape[1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return z

    monkeypatch.setattr(SimCLR, "embed", embed_within_limit)


@pytest.mark.parametrize("spared", [0, 3])
def test_out_of_memory_lowers_the_micro_batch_with_the_same_result(
    spared: int, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size": 16, "norm_batch": 2}
    whole = three_steps(exact(digits, **settings), digits)
    limit_memory(monkeypatch, limit=4, spared=spared)
    limited = three_steps(exact(digits, **settings), digits)
    assert limited.micro_batch == 4
    assert equal(limited, whole)


def test_only_what_a_forward_pass_changes_is_copied_before_it(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of MoCo may have a million rows, for whose copy no memory is planned."""
    copied: list[Tensor] = []

    def noted(buffers: list[Tensor]) -> list[Tensor]:
        copied.extend(buffers)
        return copies(buffers)

    monkeypatch.setattr("simclr.train.step.copies", noted)
    training = start_training(tiny(model=SMALL, method="moco", train={"batch_size": 16, "norm_batch": 4}), digits, CPU)
    before = {name: buffer.clone() for name, buffer in training.method.named_buffers()}
    images, labels = next(load_batches(training.config, digits, CPU, images_on_device=False))
    accumulate_within_memory(training, make_views(training.config, images, 0), labels)
    changed = {name for name, buffer in training.method.named_buffers() if not torch.equal(buffer, before[name])}
    kept = {name for name, buffer in training.method.named_buffers() if any(buffer is each for each in copied)}
    assert changed
    assert changed <= kept
    assert "queue" not in kept


def test_all_buffers_are_copied_in_one_operation_for_each_dtype(digits: Dataset) -> None:
    buffers = list(start_training(tiny(model=SMALL), digits, CPU).method.buffers())
    with Operations() as operations:
        copied = copies(buffers)
    assert operations.count == 2  # floating-point numbers and counts
    assert all(torch.equal(x, y) for x, y in zip(buffers, copied, strict=True))
    assert not {x.untyped_storage()._cdata for x in buffers} & {x.untyped_storage()._cdata for x in copied}


def test_a_compiled_network_trains_the_same_and_a_failure_to_compile_names_the_remedy(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is captured as a graph, which torch then runs without compiling it."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object, options: object) -> Callable[..., object]:
        assert options == {"fallback_random": True}  # otherwise dropout would draw other numbers
        graphs.append(graph)
        return graph.forward

    settings = {"batch_size": 16, "micro_batch": 8, "norm_batch": 8}
    plain = exact(digits, **settings)
    monkeypatch.setattr("simclr.train.step.COMPILER", backend)
    compiled = exact(digits, **settings, compile=True)
    assert plain.config.key() != compiled.config.key()
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    assert equal(three_steps(compiled, digits), three_steps(plain, digits))
    assert len(graphs) == 2  # with gradients and without, and not one for each step

    monkeypatch.setattr("simclr.train.step.MOST_VARIANTS", 1)
    with pytest.raises(UserError, match=r"train\.compile: torch can't compile this network here"):
        three_steps(exact(digits, **settings, compile=True), digits)

    def fail(graph: torch.fx.GraphModule, _: object, options: object) -> Callable[..., object]:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("simclr.train.step.COMPILER", fail)
    broken = exact(digits, **settings, compile=True)
    message = r"can't compile this network here \(.*no C\+\+ compiler.*\): add --set train\.compile=false"
    with pytest.raises(UserError, match=message):
        three_steps(broken, digits)


@pytest.mark.parametrize("norm_batch", [16, 8])
def test_out_of_memory_is_an_error_if_a_smaller_micro_batch_would_change_the_result(
    norm_batch: int, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, limit=4)
    with pytest.raises(torch.OutOfMemoryError):
        three_steps(exact(digits, batch_size=16, norm_batch=norm_batch), digits)


def test_batch_norm_over_one_image_is_an_error(digits: Dataset) -> None:
    message = r"needs 2 or more images, and train\.norm_batch = 1 splits a batch of 32 into groups of 1: raise"
    with pytest.raises(UserError, match=message):
        start_training(tiny(train={"batch_size": 32, "norm_batch": 1}), digits, CPU)


def test_mixing_needs_other_images_whatever_the_network(digits: Dataset) -> None:
    vit = {"backbone": "vit_tiny_4", "head": "linear", "width": 1.0, "stem": "imagenet"}
    start_training(tiny(model=vit, train={"norm_batch": 1}), digits, CPU)
    with pytest.raises(UserError, match=r"mixing needs 2 or more images, and train\.norm_batch = 1"):
        start_training(tiny(method="imix", model=vit, train={"norm_batch": 1}), digits, CPU)


def test_a_checkpoint_of_a_different_config_or_precision_is_rejected(digits: Dataset) -> None:
    state = start_training(tiny(), digits, CPU).state()
    with pytest.raises(UnusableCheckpoint, match=r"belongs to a different config or different data \(config [0-9a-f]+"):
        start_training(tiny(loss={"temperature": 0.3}), digits, CPU).load(state)
    state["dtype"] = "torch.float16"
    with pytest.raises(UnusableCheckpoint, match=r"started in torch.float16 but would continue in torch.float32"):
        start_training(tiny(), digits, CPU).load(state)


def test_float32_is_never_tf32_neither_forward_nor_backward(digits: Dataset) -> None:
    """CUDA reads these switches when it convolves and multiplies. Its defaults are restored after the step."""
    training, seen = start_training(tiny(train={"batch_size": 8}, model=SMALL), digits, CPU), []

    def look(*arguments: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    first = next(module for module in training.model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(look)
    first.weight.register_hook(look)
    try:
        for backend in backends:
            backend.allow_tf32 = True
        train_step(training, *first_batch(training, digits))
        look()
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
    assert seen == [(False, False), (False, False), (True, True)]


def test_a_checkpoint_of_an_earlier_version_is_continued_in_the_same_precision(digits: Dataset) -> None:
    training = start_training(tiny(), digits, CPU)
    older = training.state() | {"key": training.config.key("auto")}
    training.load(older)
    with pytest.raises(UnusableCheckpoint, match=r"started in torch.bfloat16 but would continue in torch.float32"):
        training.load(older | {"dtype": "torch.bfloat16"})


def test_local_crops_are_smaller_views_with_numbers_of_their_own(digits: Dataset) -> None:
    config = tiny(
        augment={"views": 3, "local": {"count": 2, "size": 12, "scale": [0.3, 0.5]}},
        augment2={"blur": {"p": 1.0}, "crop": {"ratio": [0.5, 2.0]}},
    )
    images = torch.from_numpy(digits.images[:6])
    whole, local = make_views(config, images, 5)(slice(0, 6))
    side = digits.images.shape[-1]
    assert (whole.shape, local.shape) == ((3, 6, 3, side, side), (2, 6, 3, 12, 12))
    plain = config.model_copy(update={"augment": config.augment.model_copy(update={"local": None})})
    (alone,) = make_views(plain, images, 5)(slice(0, 6))
    assert torch.equal(alone, whole)
    for number, pipeline in enumerate(config.local_pipelines()):
        assert ("blur" in pipeline) == (number == 1)
        assert pipeline["crop"].scale == (0.3, 0.5)  # type: ignore[attr-defined]
        assert pipeline["crop"].ratio == ((3 / 4, 4 / 3), (0.5, 2.0))[number]  # type: ignore[attr-defined]
        drawn = draw(pipeline, 6, config.seed, 5, 3 + number)
        assert torch.equal(local[number], apply(images, pipeline, drawn))


def test_the_embeddings_of_local_crops_are_those_of_the_network_without_resizing(digits: Dataset) -> None:
    config = tiny(augment={"local": {"count": 2, "size": 8}}, train={"batch_size": 8}, model=SMALL)
    training = start_training(config, digits, CPU)
    training.model.eval()
    images, labels = first_batch(training, digits)
    whole, local = make_views(config, images, 0)(slice(0, 8))
    z = torch.cat(
        [
            training.model(whole.flatten(0, 1))[1],
            training.model.head(training.model.encoder(training.model.normalize(local.flatten(0, 1)))),
        ]
    )
    expected = training.method.loss(z.unflatten(0, (4, 8)), labels)[0]
    assert accumulate(training, make_views(config, images, 0), labels)[0].item() == pytest.approx(expected.item())
