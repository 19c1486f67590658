"""Features of layers, the untrained network, and fingerprints of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.augment import BOX_DRAWS, crop_boxes, resized_crop
from simclr.build import build_model
from simclr.data.dataset import Dataset
from simclr.errors import BadSettings
from simclr.evaluate import subject as module
from simclr.evaluate.subject import check_collapse, features, layer_names, model_fingerprint, random_encoder, represent
from simclr.randomness import uniforms
from tests.helpers import subject_of, tiny

CPU = torch.device("cpu")


def test_features_do_not_depend_on_the_other_images_in_a_batch(digits: Dataset) -> None:
    model = build_model(tiny(), digits, CPU)
    rows = digits.parts["test"][:20]
    together = features(model, digits.images, rows, torch.float32)
    alone = torch.cat([features(model, digits.images, rows[i : i + 1], torch.float32) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fit_goes_through_in_halves(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes, whole = build_model(tiny(), digits, CPU), [], represent
    rows = digits.parts["test"][:20]
    together = features(model, digits.images, rows, torch.float32)

    def within(model: torch.nn.Module, images: torch.Tensor, layer: str) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, images, layer)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "represent", within)
    monkeypatch.setattr(module, "batch_of", lambda _: 20)
    halved = features(model, digits.images, rows, torch.float32)
    assert sizes == [20, 10, 5, 5, 5, 5]
    torch.testing.assert_close(halved, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(number: float, digits: Dataset) -> None:
    model = build_model(tiny(), digits, CPU)
    model.encoder.layer4[1].bn2.bias.data[3] = number  # type: ignore[union-attr,index]
    with pytest.raises(BadSettings, match="features of 20 of 20 images are not finite"):
        features(model, digits.images, digits.parts["test"][:20], torch.float32)


@pytest.mark.parametrize("kind", ["zeros", "a constant", "lengths"])
def test_a_collapsed_encoder_is_noticed(kind: str, digits: Dataset) -> None:
    subject = subject_of(digits)
    check_collapse(subject)
    norm = subject.model.encoder.layer4[1].bn2  # type: ignore[union-attr,index]
    if kind == "lengths":  # all features point in one direction
        subject.model.encoder.avgpool.register_forward_hook(lambda _, __, out: out.sum(1, keepdim=True).expand_as(out))  # type: ignore[union-attr,operator]
    else:
        for parameter in subject.model.encoder.parameters():
            parameter.data.zero_()
        norm.bias.data.fill_(1.0 if kind == "a constant" else 0.0)
    with pytest.raises(BadSettings, match=r"collapsed: \d+ different images have the same features"):
        check_collapse(subject)


def test_equal_images_are_no_collapse(digits: Dataset) -> None:
    check_collapse(subject_of(replace(digits, images=np.zeros_like(digits.images))))


def test_images_of_another_size_are_resized_as_crops_are(digits: Dataset) -> None:
    model = build_model(tiny(augment={"crop": {"size": 24}}), digits, CPU).eval()
    images = torch.rand(4, 3, digits.side, digits.side)
    box = torch.tensor([[0.0, 0, digits.side, digits.side]] * 4)
    expected = model.encoder(model.normalize(resized_crop(images, box, 24)))
    torch.testing.assert_close(represent(model, images, "h"), expected, rtol=1e-3, atol=1e-4)


def test_averaged_crops_are_the_mean_of_crops_that_stay_the_same(digits: Dataset) -> None:
    subject = subject_of(digits, ["crops.count=3", "crops.scale=[0.3,0.5]"])
    x, _ = subject.val
    rows, model = digits.parts["val"], subject.model.eval()
    images = torch.from_numpy(digits.images[rows]).float() / 255
    drawn = [uniforms((len(rows), BOX_DRAWS), 0, "averaged crops", number) for number in range(3)]
    views = [
        resized_crop(images, crop_boxes(u, (0.3, 0.5), (3 / 4, 4 / 3), *images.shape[2:]), digits.side) for u in drawn
    ]
    with torch.no_grad():
        expected = torch.stack([model(view)[0] for view in views]).mean(0)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(x, subject_of(digits).val[0], rtol=1e-2)


def test_every_layer_is_what_the_network_computes_there(digits: Dataset) -> None:
    model = build_model(tiny(model={"head": "mlp3"}), digits, CPU).eval()
    assert layer_names(model) == ["h", "head.0", "head.1", "head.2", "head.3", "z"]
    seen = {}
    for name, child in model.head.named_children():
        child.register_forward_hook(lambda _, __, out, name=name: seen.update({f"head.{name}": out.clone()}))
    images = torch.rand(4, 3, 8, 8)
    h, z = model(images)
    expected = {"h": h, "z": z, "pixels": ((images - model.mean) / model.std).flatten(1), **seen}
    for layer in (*layer_names(model), "pixels"):
        if layer not in ("head.0", "head.2"):  # the ReLU after these works in place
            torch.testing.assert_close(represent(model, images, layer), expected[layer])


def test_random_encoder_has_measured_statistics_and_the_initial_weights(digits: Dataset) -> None:
    subject = subject_of(digits)
    subject.model.mean.fill_(0.25)
    model = random_encoder(subject)
    assert torch.equal(model.mean, subject.model.mean)
    untrained = build_model(tiny(), digits, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True))
    h = features(model, digits.images, digits.parts["test"], torch.float32)
    assert 0.05 < h.std() < 20
    assert model.encoder.bn1.running_var.mean() != 1  # type: ignore[union-attr,operator]
    momenta = {norm.momentum for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}  # fine-tuning updates the statistics as usual


def test_random_encoder_ignores_a_last_batch_of_one_image(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(digits, model={"stem": "imagenet"})  # maps of one pixel: one image has no statistics
    monkeypatch.setattr(module, "PIXELS_PER_BATCH", (len(digits.parts["pretrain"]) - 1) * subject.model.side**2)
    assert random_encoder(subject).encoder.bn1.running_var.isfinite().all()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.bn1.running_mean", "mean", "head.2.bias"])
def test_fingerprint_changes_with_one_number_of_a_weight_or_a_buffer(name: str, digits: Dataset) -> None:
    model, same = build_model(tiny(), digits, CPU), build_model(tiny(), digits, CPU)
    assert model_fingerprint(model) == model_fingerprint(same)
    tensor = model.state_dict()[name]
    tensor[(0,) * tensor.dim()] += 1e-3
    assert model_fingerprint(model) != model_fingerprint(same)
