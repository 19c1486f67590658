"""Imported encoders give the features that they gave in their program, and no code in their files is run."""

import argparse
import functools
import pickle
import zipfile

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vision_transformer

from simclr.errors import UserError
from simclr.model import RESNETS, ModelConfig, WideResNet, build_encoder
from simclr.weights.foreign import LAYOUTS, detect_layout, find_encoders, import_encoder, read_foreign
from tests.simclr.weights.helpers import Bomb, error_of, noise, shrink_convnext

IMAGES = torch.from_numpy(noise(32, 32, 4, 3)).permute(2, 3, 0, 1).float() / 255


def settled(network):
    """With batch norms that have seen images."""
    network(IMAGES)
    return network.eval()


def resnet(width=0.125, stem="imagenet", backbone="resnet10"):
    torch.manual_seed(0)
    network = WideResNet(*RESNETS[backbone], width, stem)
    network.fc = nn.Identity()
    return settled(network)


@torch.no_grad()
def features(network):
    return network(IMAGES).flatten(1)


@torch.no_grad()
def imported_features(imported):
    encoder, _ = build_encoder(ModelConfig(**imported.model), 32, 5)
    encoder.load_state_dict(imported.weights)
    return encoder.eval()(IMAGES)


# --- layouts ----------------------------------------------------------------------------------------------------------


def head():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))


def with_fc(network, fc):
    network.fc = fc
    return network


class AttributeDict(dict):
    """Lightning saves hyper-parameters in an object like this."""


def lightning(parts):
    settings = AttributeDict(lr=0.1, optimizer=functools.partial(torch.optim.SGD, lr=0.1), args=argparse.Namespace(a=1))
    return {
        "epoch": 3,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": nn.ModuleDict(parts).state_dict(),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}}],
        "hyper_parameters": settings,
    }


def numbered(network):
    return nn.Sequential(*list(network.children())[:-1])


def sequence(net, *after_norm):
    """The parts of a ResNet in a sequence, without max-pool, and without ReLU unless it is given."""
    layers = (net.layer1, net.layer2, net.layer3, net.layer4)
    return nn.Sequential(net.conv1, net.bn1, *after_norm, *layers, nn.AdaptiveAvgPool2d(1))


def with_shortcuts(network):
    """Its state dict as kuangliu's ResNets, which many programs copied, name what torchvision calls `downsample`."""
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in network.state_dict().items()}


# What each program saves of a ResNet, from the network without its head.
SAVED = {
    "torchvision": lambda net: with_fc(net, nn.Linear(32, 10)).state_dict(),
    "timm": lambda net: {"state_dict": with_fc(net, nn.Linear(32, 10)).state_dict(), "arch": "resnet10", "epoch": 1},
    "sequential": lambda net: numbered(net).state_dict(),
    "sthalles": lambda net: {
        "epoch": 100,
        "arch": "resnet10",
        "state_dict": nn.ModuleDict({"backbone": with_fc(net, head())}).state_dict(),
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
    },
    "spijkervet": lambda net: nn.ModuleDict({"encoder": net, "projector": head()}).state_dict(),
    "solo-learn": lambda net: lightning({"backbone": net, "classifier": nn.Linear(32, 10), "projector": head()}),
    "lightly": lambda net: lightning({"backbone": numbered(net), "projection_head": nn.ModuleDict({"layers": head()})}),
    "lightly-benchmarks": lambda net: lightning(
        {
            "backbone": net,
            "projection_head": nn.ModuleDict({"layers": head()}),
            "online_classifier": nn.ModuleDict({"linear": nn.Linear(32, 10)}),
        }
    ),
    "lightly-generator": lambda net: (
        lightning({"backbone": sequence(net), "projection_head": head()})
        | {"state_dict": with_shortcuts(nn.ModuleDict({"backbone": sequence(net), "projection_head": head()}))}
    ),
    "resnet-generator": lambda net: with_shortcuts(net) | {"linear.weight": torch.ones(10, 32)},
    "supcontrast": lambda net: {"model": with_shortcuts(nn.ModuleDict({"encoder": net, "head": head()}))},
    "leftthomas": lambda net: nn.ModuleDict({"f": sequence(net, nn.ReLU()), "g": head()}).state_dict(),
}
# How many tensors the heads have, where they aren't four.
HEADS = {
    "timm": 2,
    "torchvision": 2,
    "sequential": 0,
    "solo-learn": 6,
    "lightly-benchmarks": 6,
    "resnet-generator": 1,
}
STEMS = {"lightly-generator": "cifar_no_relu", "leftthomas": "imagenet_no_pool"}  # the others: imagenet


def test_every_layout_is_tested():
    assert SAVED.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_detected_and_gives_the_features_of_the_source(layout, tmp_path):
    network, path = resnet(stem=STEMS.get(layout, "imagenet")), tmp_path / "foreign.pth.tar"
    expected = features(network)
    torch.save(SAVED[layout](network), path)
    (place,) = find_encoders(read_foreign(path), ["conv1.weight", "layer1.0.conv1.weight"])
    detected = detect_layout(read_foreign(path)[place.state], place)
    assert detected == LAYOUTS["torchvision" if layout == "timm" else layout]  # which have the same names
    for given in ("auto", layout):
        imported = import_encoder(path, given)
        stem = STEMS.get(layout, "imagenet")
        assert imported.model == {"backbone": "resnet10", "stem": stem, "width": 0.125, "head": "none"}
        assert torch.equal(imported_features(imported), expected)
        assert (imported.missing, imported.unmatched, imported.side) == ([], [], None)
        assert len(imported.left_out) == HEADS.get(layout, 4)


@pytest.mark.parametrize("wrapper", ["parallel", "parallel inside", "compiled", "both"])
def test_wrappers_are_removed_from_names(wrapper, tmp_path):
    network = resnet()
    inside = nn.DataParallel(network) if wrapper == "parallel inside" else network
    state = (nn.DataParallel if wrapper in ("parallel", "both") else nn.Sequential)(nn.ModuleDict({"encoder": inside}))
    mark = {"compiled": "_orig_mod.", "both": "_orig_mod.module."}.get(wrapper, "module.")
    state = {mark + key.partition(".")[2]: value for key, value in state.state_dict().items()}
    torch.save({"model": state}, tmp_path / "foreign.pt")
    expected = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    found = read_foreign(tmp_path / "foreign.pt")["model."]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["legacy", "safetensors", "half"])
def test_other_kinds_of_files_are_read(kind, tmp_path):
    network, path = resnet(), tmp_path / ("foreign.safetensors" if kind == "safetensors" else "foreign.ckpt")
    if kind == "legacy":
        torch.save(SAVED["lightly"](network), path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.half().state_dict(), path)
        network.float()
    assert torch.equal(imported_features(import_encoder(path)), features(network))


def test_lightlys_resnet_generator_keeps_its_missing_relu_and_the_statistics_of_parts_of_a_batch(tmp_path):
    """ReLU is no module of ResNetGenerator, so that its sequence of modules has none after the first norm.

    Its SplitBatchNorm keeps statistics for each part of a batch, and evaluates with their mean.
    """
    network, path = sequence(resnet(stem="cifar")), tmp_path / "moco.ckpt"
    network(IMAGES)
    expected = features(network.eval())
    state = {f"backbone.{name}": tensor for name, tensor in with_shortcuts(network).items()}
    for name, tensor in state.items():
        if "running" in name:
            state[name] = torch.cat([tensor * 0.5, tensor * 1.5])
    torch.save({"state_dict": state}, path)
    assert "downsample" not in str(state.keys())
    imported = import_encoder(path)
    assert imported.model["stem"] == "cifar_no_relu"
    assert "cifar" in imported.other_stems
    torch.testing.assert_close(imported_features(imported), expected)


@pytest.mark.parametrize(("stem", "name"), [("cifar", "cifar"), ("imagenet", "imagenet_no_pool")])
def test_a_sequence_without_max_pool_has_other_numbers(stem, name, tmp_path):
    network = sequence(resnet(stem=stem), nn.ReLU())
    network(IMAGES)
    expected = features(network.eval())
    torch.save({f"mine.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt")
    assert imported.model["stem"] == name
    assert torch.equal(imported_features(imported), expected)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_the_libraries_are_imported(library, tmp_path):
    build = {"timm": lambda: timm.create_model("resnet18", num_classes=0), "torchvision": torchvision.models.resnet18}
    network = settled(build[library]())
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    network.fc = nn.Identity()
    imported = import_encoder(tmp_path / "foreign.pt", library)
    assert torch.allclose(imported_features(imported), features(network), atol=1e-5)


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "stem"), [(0.125, "cifar"), (0.125, "stride2"), (0.25, "imagenet"), (0.5, "imagenet")]
)
def test_width_and_stem_are_inferred(width, stem, tmp_path):
    network = resnet(width, stem)
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt", stem="stride2" if stem == "stride2" else None)
    assert imported.model == {"backbone": "resnet10", "stem": stem, "width": width, "head": "none"}
    assert imported.other_stems == (["cifar_no_relu", "cifar_pad2", "stride2"] if stem == "cifar" else [])
    assert torch.equal(imported_features(imported), features(network))


@pytest.mark.parametrize("backbone", RESNETS)
def test_the_backbone_is_inferred(backbone, tmp_path):
    torch.save(resnet(backbone=backbone).state_dict(), tmp_path / "foreign.pt")
    assert import_encoder(tmp_path / "foreign.pt").model["backbone"] == backbone


def test_the_small_stem_of_solo_learn_pads_by_two(tmp_path):
    network = resnet(stem="cifar")
    network.conv1.padding = (2, 2)
    torch.save(SAVED["solo-learn"](network), tmp_path / "foreign.ckpt")
    imported = import_encoder(tmp_path / "foreign.ckpt")
    assert imported.model["stem"] == "cifar_pad2"
    assert torch.equal(imported_features(imported), features(network))


def test_a_given_backbone_keeps_the_norm_of_its_classifier(tmp_path, monkeypatch):
    shrink_convnext(monkeypatch)
    network = torchvision.models.convnext_tiny().eval()
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    network.classifier = network.classifier[:2]
    few_backbones(monkeypatch, "convnext_tiny")
    assert error_of(import_encoder, tmp_path / "foreign.pt").endswith(
        "it is a convnext_tiny, so add --backbone convnext_tiny"
    )
    imported = import_encoder(tmp_path / "foreign.pt", backbone="convnext_tiny")
    assert imported.left_out == ["classifier.2.weight", "classifier.2.bias"]
    assert torch.equal(imported_features(imported), features(network))


def test_a_vision_transformer_gives_its_side(tmp_path, monkeypatch):
    build = vision_transformer._vision_transformer
    monkeypatch.setattr(
        vision_transformer, "_vision_transformer", lambda **options: build(**options | {"num_layers": 1})
    )
    network = torchvision.models.vit_b_32(image_size=96)
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt", backbone="vit_b_32")
    assert imported.side == 96
    assert imported.left_out == ["heads.head.weight", "heads.head.bias"]


def few_backbones(monkeypatch, *names):
    """Let only some networks be tried when a file has none that was expected."""
    monkeypatch.setattr("simclr.weights.foreign.backbones", lambda: names)


def test_a_network_with_the_names_but_not_the_shapes_of_a_resnet_is_rejected(tmp_path, monkeypatch):
    few_backbones(monkeypatch, "resnet10", "resnet18", "resnext50_32x4d")
    path, shape = tmp_path / "foreign.pt", {"layer1.0.conv2.weight": torch.ones(8, 1, 3, 3)}
    torch.save(resnet().state_dict() | shape, path)
    message = (
        "looks like a resnet10, but layer1.0.conv2.weight is (8, 1, 3, 3), expected (8, 8, 3, 3): no other network"
    )
    assert message in error_of(import_encoder, path)
    assert "unknown stem 'small'" in error_of(lambda: import_encoder(path, backbone="resnet18", stem="small"))
    message = error_of(lambda: import_encoder(path, backbone="resnext50_32x4d"))
    assert "there is no resnext50_32x4d" in message
    assert message.endswith("no other network that this suite knows has its tensors")
    with torch.device("meta"):
        state = torchvision.models.resnext50_32x4d().state_dict()
    torch.save({name: torch.zeros(()).expand(tensor.shape).clone() for name, tensor in state.items()}, path)
    assert error_of(import_encoder, path).endswith("it is a resnext50_32x4d, so add --backbone resnext50_32x4d")


def test_a_wrong_backbone_is_corrected(tmp_path, monkeypatch):
    few_backbones(monkeypatch, *RESNETS)
    torch.save(prefixed(resnet(), "f."), tmp_path / "foreign.pt")
    message = error_of(lambda: import_encoder(tmp_path / "foreign.pt", backbone="resnet18"))
    assert "it is a resnet10, so add --backbone resnet10" in message
    assert import_encoder(tmp_path / "foreign.pt", backbone="resnet10").missing == []


def test_a_resnet_of_other_depths_is_rejected(tmp_path):
    state = resnet(backbone="resnet18").state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("layer4.1.")}, tmp_path / "f.pt")
    assert "[2, 2, 2, 1] BasicBlocks, so this encoder can't be imported" in error_of(import_encoder, tmp_path / "f.pt")


# --- prefixes ---------------------------------------------------------------------------------------------------------


def nested(state, *places):
    for place in reversed(places):
        state = {place: state}
    return state


def prefixed(network, prefix):
    return {prefix + name: tensor for name, tensor in with_fc(network, nn.Linear(32, 10)).state_dict().items()}


@pytest.mark.parametrize("prefix", ["convnet.", "f.", "encoder_q.", "teacher.backbone.", "module.trunk.", "net.0.", ""])
@pytest.mark.parametrize("places", [(), ("state",), ("model", "weights"), ("checkpoint", "model", "ema")])
def test_an_encoder_is_found_under_any_prefix_and_nesting(prefix, places, tmp_path):
    network, path = resnet(), tmp_path / "foreign.pth"
    expected, beside = features(network), {"projector.weight": torch.ones(2)} if prefix else {}
    other = {"epoch": torch.tensor(3)} if places else {}
    torch.save(nested(prefixed(network, prefix) | beside, *places) | other, path)
    imported = import_encoder(path)
    assert torch.equal(imported_features(imported), expected)
    assert (imported.missing, imported.unmatched) == ([], [])
    heads = {prefix.removeprefix("module.") + name for name in ("fc.weight", "fc.bias")}
    assert set(imported.left_out) == heads | beside.keys()


def test_numbered_parts_are_found_under_any_prefix(tmp_path):
    network, path = resnet(), tmp_path / "foreign.pth"
    expected = features(network)
    torch.save({f"f.{name}": tensor for name, tensor in numbered(network).state_dict().items()}, path)
    assert torch.equal(imported_features(import_encoder(path)), expected)


@pytest.mark.parametrize("given", ["encoder_k.", "encoder_k", "module.encoder_k.", "momentum.encoder_k."])
def test_a_prefix_chooses_one_of_several_encoders(given, tmp_path):
    one, other, path = resnet(), resnet(), tmp_path / "foreign.pth"
    with torch.no_grad():
        other.conv1.weight.mul_(2)
    expected = features(other)
    content = {"momentum": prefixed(one, "encoder_q.") | prefixed(other, "module.encoder_k."), "queue": torch.ones(4)}
    torch.save(content, path)
    assert "--prefix 'momentum.encoder_q.' or 'momentum.encoder_k.'" in error_of(import_encoder, path)
    assert "no encoder under 'encoder'" in error_of(lambda: import_encoder(path, prefix="encoder"))
    imported = import_encoder(path, prefix=given)
    assert torch.equal(imported_features(imported), expected)
    assert "encoder_q.conv1.weight" in imported.left_out


@pytest.mark.parametrize("given", ["''", "'momentum_encoder.'", "'momentum_encoder.teacher.'"])
def test_each_suggested_prefix_chooses_an_encoder_also_if_others_are_below_it(given, tmp_path, monkeypatch):
    few_backbones(monkeypatch, "resnet10")
    networks = {prefix: resnet() for prefix in ("", "momentum_encoder.", "momentum_encoder.teacher.")}
    path, state = tmp_path / "foreign.pth", {}
    for number, (prefix, network) in enumerate(networks.items(), 1):
        network.state_dict()["conv1.weight"].mul_(number)
        state |= prefixed(network, prefix)
    torch.save(state, path)
    assert given in error_of(import_encoder, path).partition("choose one with --prefix ")[2].split(" or ")
    prefix = given.strip("'")
    expected = networks[prefix].conv1.weight
    imported = import_encoder(path, prefix=prefix)
    assert torch.equal(imported.weights["conv1.weight"], expected)
    assert len(imported.left_out) == len(state) - len(imported.weights)


def test_the_usual_state_dict_comes_before_others(tmp_path):
    network, other = resnet(), resnet()
    expected = features(network)
    with torch.no_grad():
        other.conv1.weight.mul_(2)
    torch.save({"ema": other.state_dict(), "state_dict": network.state_dict()}, tmp_path / "foreign.pth")
    assert torch.equal(imported_features(import_encoder(tmp_path / "foreign.pth")), expected)


# --- numbers that can't be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("entry", ["conv1.weight", "layer4.0.bn2.running_var"])
def test_an_entry_that_is_not_finite_is_named(number, entry, tmp_path):
    network, path = resnet(), tmp_path / "foreign.pth"
    network.state_dict()[entry].view(-1)[1] = number
    torch.save(prefixed(network, "f."), path)
    assert f"numbers in f.{entry} are not finite" in error_of(import_encoder, path)


def test_a_head_that_is_not_finite_does_no_harm(tmp_path):
    state = prefixed(resnet(), "") | {"fc.bias": torch.full((10,), torch.nan)}
    torch.save(state, tmp_path / "foreign.pth")
    assert "fc.bias" in import_encoder(tmp_path / "foreign.pth").left_out


def claims(shape):
    """A tensor of this shape that takes one number in a file."""
    return torch.ones(()).expand(shape)


HUGE = {
    "one entry": lambda state: state | {"conv1.weight": claims((64 * 60, 3, 7, 7))},
    "all entries": lambda state: {
        name: claims([side * 60 if side > 7 else side for side in tensor.shape]) for name, tensor in state.items()
    },
    "no numbers at all": lambda state: {name: tensor.to("meta") for name, tensor in state.items()},
    "sparse": lambda state: state | {"conv1.weight": state["conv1.weight"].to_sparse()},
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_small_file_can_not_make_a_large_network(kind, tmp_path, monkeypatch):
    path = tmp_path / "foreign.pth"
    torch.save(HUGE[kind](resnet().state_dict()), path)
    monkeypatch.setattr(torch.Tensor, "normal_", lambda *_: pytest.fail("a network was made"))
    assert "conv1.weight" in error_of(import_encoder, path)


def test_an_archive_that_unpacks_is_refused(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"conv1.weight": torch.zeros(1000, 1000)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)
    assert path.stat().st_size < 20_000
    assert "its records are packed" in error_of(import_encoder, path)


def test_content_that_contains_itself_is_refused(tmp_path):
    content = {"epoch": 3}
    content["again"] = content
    torch.save(content, tmp_path / "foreign.pth")
    assert "can't read" in error_of(import_encoder, tmp_path / "foreign.pth")


# --- files that do not match ------------------------------------------------------------------------------------------


def test_missing_and_unmatched_tensors_are_listed_and_rejected_unless_partial(tmp_path, monkeypatch):
    few_backbones(monkeypatch, "resnet10", "resnet18")
    network, path = resnet(), tmp_path / "foreign.pt"
    state = network.state_dict()
    del state["layer3.0.bn2.weight"], state["bn1.num_batches_tracked"]
    torch.save(state | {"queue": torch.ones(3), "fc.weight": torch.ones(3, 64)}, path)
    message = error_of(import_encoder, path)
    assert "1 of its tensors are missing (layer3.0.bn2.weight)" in message
    assert "1 tensors belong neither to it nor to a known head (queue)" in message
    assert message.endswith("no other network that this suite knows has its tensors. Add --partial to import it anyway")
    imported = import_encoder(path, partial=True)
    assert (imported.missing, imported.unmatched) == (["layer3.0.bn2.weight"], ["queue"])
    assert imported.left_out == ["fc.weight"]
    assert imported.weights.keys() == network.state_dict().keys()
    assert torch.equal(imported.weights["layer3.0.bn2.weight"], torch.ones(64 // 2))


def test_counts_of_batches_may_be_missing(tmp_path):
    network = resnet()
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "foreign.pt")
    assert torch.equal(imported_features(import_encoder(tmp_path / "foreign.pt")), features(network))


def some(*prefixes):
    """The first tensors of a ResNet under each prefix."""
    names = ("conv1.weight", "layer1.0.conv1.weight")
    return {f"{prefix}{name}": torch.ones(4, 3, 7, 7) for prefix in prefixes for name in names}


REJECTED = {
    "no encoder": (
        {"a.weight": torch.ones(2), "b.weight": torch.ones(2)},
        "auto",
        r"no ResNet \('conv1.weight' .*a.weight, b.weight: no other network that this suite knows",
    ),
    "two encoders": (
        some("encoder.", "backbone."),
        "auto",
        "several encoders: choose one with --prefix 'encoder.' or 'backbone.'$",
    ),
    "two state dicts": (
        {"student": some("net."), "teacher": some("")},
        "auto",
        "several encoders: choose one with --prefix 'student.net.' or 'teacher.'$",
    ),
    "another layout": (some("mine."), "sthalles", "not where 'sthalles' has it, but under 'mine.': leave out --format"),
    "no such layout": (some(""), "lightl", "did you mean 'lightly'"),
    "no convolution": (some("") | {"conv1.weight": torch.ones(4)}, "auto", r"shape \(4,\): expected"),
    "a whole network": (nn.Linear(2, 2), "auto", r"no state dict.*state_dict\(\)"),
    "a tensor": (torch.ones(2), "auto", "no state dict"),
    "no tensors": ({"state_dict": {"epoch": 3}}, "auto", "no state dict"),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_unknown_content_is_rejected_with_the_reason(kind, tmp_path, monkeypatch):
    few_backbones(monkeypatch, "resnet18", "densenet121")
    content, layout, message = REJECTED[kind]
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=message):
        import_encoder(tmp_path / "foreign.pt", layout)


def test_only_networks_that_may_be_in_the_file_are_built(tmp_path, monkeypatch):
    path, built = tmp_path / "foreign.pt", []

    def build(model, *arguments):
        built.append(model.backbone)
        return build_encoder(model, *arguments)

    monkeypatch.setattr("simclr.weights.foreign.build_encoder", build)
    torch.save({"a.weight": torch.ones(2)}, path)
    assert error_of(import_encoder, path).endswith("no other network that this suite knows has its tensors")
    assert not built
    torch.save(resnet().state_dict(), path)
    message = error_of(lambda: import_encoder(path, backbone="vgg11"))
    assert message.endswith("it is a resnet10, so add --backbone resnet10")
    assert set(built) <= {"vgg11", *RESNETS}
    built.clear()
    torch.save(resnet().state_dict() | {"queue": torch.ones(3)}, path)
    assert error_of(import_encoder, path).endswith("(queue). Add --partial to import it anyway")
    assert built == ["resnet10"]


@pytest.mark.parametrize("kind", ["text", "cut", "missing", "safetensors", "torchscript"])
def test_a_file_that_cannot_be_read_is_named(kind, tmp_path):
    path = tmp_path / ("foreign.safetensors" if kind == "safetensors" else "foreign.pt")
    if kind == "cut":
        torch.save(resnet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "torchscript":
        torch.jit.script(nn.Linear(2, 2)).save(path)
    elif kind != "missing":
        path.write_bytes(b"this is neither of them")
    assert str(path) in error_of(read_foreign, path)


# --- no code is run ---------------------------------------------------------------------------------------------------


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["beside", "inside", "key", "whole"])
@pytest.mark.parametrize("kind", ["mkdir", "eval", "torch.load"])
def test_code_in_a_file_is_not_run(kind, where, legacy, tmp_path):
    mark, path, state = tmp_path / "ran", tmp_path / "foreign.ckpt", nn.Linear(3, 2).state_dict()
    bomb = {
        "mkdir": Bomb(mark),
        "eval": Call(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "torch.load": Call(torch.storage._load_from_bytes, pickle.dumps(Bomb(mark))),
    }[kind]
    content = {
        "beside": {"state_dict": state, "hyper_parameters": [bomb]},
        "inside": {"state_dict": dict(state) | {"bomb": bomb}},
        "key": {"state_dict": state, bomb: 1},
        "whole": bomb,
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if where == "whole":
        assert "no state dict" in error_of(read_foreign, path)
    else:
        (found,) = read_foreign(path).values()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert not mark.exists()


def test_a_file_cannot_change_the_functions_that_it_may_call(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00stainK\x01s\x86b."  # BUILD: set attributes
    )
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, program if name.endswith("data.pkl") else content)
    assert str(path) in error_of(read_foreign, path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "stain")
