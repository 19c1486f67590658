from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simclr.augment import resized_crop
from simclr.build import build_model
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import protocol, subject
from simclr.evaluate.evaluations import EVALUATIONS, evaluate
from tests.helpers import subject_of, tiny

CPU = torch.device("cpu")


def test_features_do_not_depend_on_their_neighbours_in_a_batch(digits: Dataset) -> None:
    model = build_model(tiny(), digits, CPU)
    rows = digits.parts["test"][:20]
    together = subject.features(model, digits.images, rows, torch.float32)
    alone = torch.cat([subject.features(model, digits.images, rows[i : i + 1], torch.float32) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_network_is_judged_at_the_size_of_its_views(name: str, digits: Dataset) -> None:
    settings = ["linear.l2_values=3", "linear_sgd.epochs=1", "finetune.epochs=1", "finetune.min_steps=1"]
    large = subject_of(digits, settings, augment={"crop": {"size": 24}})
    sides = set()
    large.model.encoder.register_forward_pre_hook(lambda _, given: sides.update(given[0].shape[2:]))
    subject.random_encoder(large)
    evaluate(large, name)
    assert digits.side != 24
    assert sides == {24}
    same = replace(large, model=build_model(tiny(), digits, CPU))
    assert same.identity(("knn",)) == subject_of(digits).identity(("knn",)) != large.identity(("knn",))


def test_images_of_another_size_are_resized_as_crops_are(digits: Dataset) -> None:
    model = build_model(tiny(augment={"crop": {"size": 24}}), digits, CPU).eval()
    images = torch.rand(4, 3, digits.side, digits.side)
    box = torch.tensor([[0.0, 0, digits.side, digits.side]] * 4)
    expected = model.encoder(model.normalize(resized_crop(images, box, 24)))
    torch.testing.assert_close(subject.represent(model, images, "h"), expected, rtol=1e-3, atol=1e-4)


def test_every_layer_is_what_the_network_computes_there(digits: Dataset) -> None:
    model = build_model(tiny(model={"head": "mlp3"}), digits, CPU).eval()
    assert subject.layers(model) == ["h", "head.0", "head.1", "head.2", "head.3", "z"]
    seen = {}
    for name, module in model.head.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({f"head.{name}": out.clone()}))
    images = torch.rand(4, 3, 8, 8)
    h, z = model(images)
    expected = {"h": h, "z": z, "pixels": ((images - model.mean) / model.std).flatten(1), **seen}
    for layer in (*subject.layers(model), "pixels"):
        if layer not in ("head.0", "head.2"):  # the ReLU behind these works in place
            torch.testing.assert_close(subject.represent(model, images, layer), expected[layer])


def test_the_random_encoder_has_sane_activations_and_the_config_s_weights(digits: Dataset) -> None:
    subject = subject_of(digits)
    subject.model.mean.fill_(0.25)
    model = subject.random_encoder(subject)
    assert torch.equal(model.mean, subject.model.mean)
    untrained = build_model(tiny(), digits, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True))
    h = subject.features(model, digits.images, digits.parts["test"], torch.float32)
    assert 0.05 < h.std() < 20
    assert model.encoder.bn1.running_var.mean() != 1  # type: ignore[union-attr,operator]
    momenta = {module.momentum for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}  # fine-tuned, it is to follow its own statistics


def test_an_image_left_over_does_not_end_the_random_encoder(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(digits, model={"stem": "imagenet"})  # its map is one pixel: of one image, nothing to norm by
    monkeypatch.setattr(subject, "PIXELS", (len(digits.parts["pretrain"]) - 1) * subject.model.side**2)
    assert subject.random_encoder(subject).encoder.bn1.running_var.isfinite().all()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.bn1.running_mean", "mean", "head.2.bias"])
def test_a_fingerprint_sees_one_changed_number_of_a_weight_or_a_buffer(name: str, digits: Dataset) -> None:
    model, same = build_model(tiny(), digits, CPU), build_model(tiny(), digits, CPU)
    assert subject.fingerprint(model) == subject.fingerprint(same)
    tensor = model.state_dict()[name]
    tensor[(0,) * tensor.dim()] += 1e-3
    assert subject.fingerprint(model) != subject.fingerprint(same)


def test_figures_may_be_compared_when_and_only_when_all_they_depend_on_is_equal(digits: Dataset) -> None:
    base = subject_of(digits).identity(("knn",))
    assert base.startswith("3-")
    same = [
        subject_of(digits, ["linear.l2_values=3"]),  # not read
        subject_of(digits, ["knn.k=[1,200]"]),  # named by the figure
        subject_of(digits, model={"width": 0.125}),  # the encoder is what is compared
    ]
    other_split = replace(digits, parts=digits.parts | {"val": digits.parts["val"][1:]})
    different = [
        subject_of(digits, ["knn.temperature=0.2"]),
        subject_of(digits, layer="z"),
        subject_of(other_split),
        subject_of(replace(digits, digest="another")),
    ]
    assert {s.identity(("knn",)) for s in same} == {base}
    assert len({s.identity(("knn",)) for s in different} | {base}) == 5


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("knn.k=[0]", r"knn\.k\.0 = 0: expected greater than or equal to 1"),
        ("knn.kk=1", "did you mean 'knn.k'"),
        ("finetune.fractions=[2]", r"finetune\.fractions\.0 = 2: expected less than or equal to 1"),
        ("finetune.fractions=[a]", r"finetune\.fractions"),
        ("finetune.fractions=[0.5, 0.1, 0.5]", r"expected each value once"),
        ("linear.l2_max=-1", r"linear\.l2_max = -1: expected greater than 0"),
        ("knn", "is not a setting"),
    ],
)
def test_bad_settings_are_named(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        protocol.make_protocol([setting])
