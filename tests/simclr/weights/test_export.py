"""Encoders of other programs give the features they gave there, nothing in their files is run, and ours load there."""

import argparse
import functools
import pickle
import sys
import zipfile

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from test_checkpoint import Bomb, refusal
from test_encoder import MEAN, STD, noise, trained
from torch import nn

from simclr import load_encoder
from simclr.errors import RunFailed, UserError
from simclr.model import RESNETS, ModelConfig, WideResNet, build_encoder
from simclr.weights.checkpoint import load_weights
from simclr.weights.export import EXPORTS, export_encoder
from simclr.weights.foreign import LAYOUTS, detect, import_encoder, read_foreign
from tests.helpers import tiny

IMAGES = torch.from_numpy(noise(32, 32, 4, 3)).permute(2, 3, 0, 1).float() / 255


def settled(network):
    """With batch norms that have seen images."""
    network(IMAGES)
    return network.eval()


def resnet(width=0.125, stem="imagenet", backbone="resnet18"):
    torch.manual_seed(0)
    network = WideResNet(*RESNETS[backbone], width)
    network.set_stem(stem)
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


# --- import: layouts --------------------------------------------------------------------------------------------------


def head():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))


def with_fc(network, fc):
    network.fc = fc
    return network


class AttributeDict(dict):
    """As Lightning's: hyper-parameters in an object of its own."""


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


# What each program saves of a ResNet, from the network without its head.
SAVED = {
    "torchvision": lambda net: with_fc(net, nn.Linear(32, 10)).state_dict(),
    "timm": lambda net: {"state_dict": with_fc(net, nn.Linear(32, 10)).state_dict(), "arch": "resnet18", "epoch": 1},
    "sequential": lambda net: numbered(net).state_dict(),
    "sthalles": lambda net: {
        "epoch": 100,
        "arch": "resnet18",
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
}
HEADS = {"timm": 2, "torchvision": 2, "sequential": 0, "solo-learn": 6, "lightly-benchmarks": 6}  # the others: 4


def test_every_layout_is_tried():
    assert SAVED.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("asked", ["auto", "by name"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_an_imported_encoder_are_the_sources(layout, asked, tmp_path):
    network, path = resnet(), tmp_path / "foreign.pth.tar"
    expected = features(network)
    torch.save(SAVED[layout](network), path)
    imported = import_encoder(path, "auto" if asked == "auto" else layout)
    assert imported.model == {"backbone": "resnet18", "stem": "imagenet", "width": 0.125, "head": "none"}
    assert torch.equal(imported_features(imported), expected)
    assert (imported.missing, imported.unmatched, imported.side) == ([], [], None)
    assert len(imported.left_out) == HEADS.get(layout, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_detected(layout, tmp_path):
    torch.save(SAVED[layout](resnet()), tmp_path / "foreign.pt")
    found = detect(read_foreign(tmp_path / "foreign.pt"))
    assert found == {"timm": "torchvision"}.get(layout, layout)  # the names are the same


@pytest.mark.parametrize("wrapper", ["parallel", "parallel inside", "compiled", "both"])
def test_wrappers_are_taken_out_of_names(wrapper, tmp_path):
    network = resnet()
    inside = nn.DataParallel(network) if wrapper == "parallel inside" else network
    state = (nn.DataParallel if wrapper in ("parallel", "both") else nn.Sequential)(nn.ModuleDict({"encoder": inside}))
    mark = {"compiled": "_orig_mod.", "both": "_orig_mod.module."}.get(wrapper, "module.")
    state = {mark + key.partition(".")[2]: value for key, value in state.state_dict().items()}
    torch.save({"model": state}, tmp_path / "foreign.pt")
    assert torch.equal(imported_features(import_encoder(tmp_path / "foreign.pt")), features(network))


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


def test_networks_of_the_libraries_themselves_are_imported(tmp_path):
    for name, network in (
        ("timm", timm.create_model("resnet18", num_classes=0)),
        ("torchvision", torchvision.models.resnet18()),
    ):
        torch.save(settled(network).state_dict(), tmp_path / "foreign.pt")
        network.fc = nn.Identity()
        imported = import_encoder(tmp_path / "foreign.pt", name)
        assert torch.allclose(imported_features(imported), features(network), atol=1e-5)


# --- import: what network it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.125, 0.25, 0.5])
@pytest.mark.parametrize("stem", ["imagenet", "cifar", "stride2"])
def test_width_and_stem_are_inferred(width, stem, tmp_path):
    network = resnet(width, stem)
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt", stem="stride2" if stem == "stride2" else None)
    assert imported.model == {"backbone": "resnet18", "stem": stem, "width": width, "head": "none"}
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


def test_a_named_backbone_keeps_the_norm_at_the_start_of_its_classifier(tmp_path):
    network = torchvision.models.convnext_tiny().eval()
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    network.classifier = network.classifier[:2]
    assert "name the backbone" in refusal(import_encoder, tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt", backbone="convnext_tiny")
    assert imported.left_out == ["classifier.2.weight", "classifier.2.bias"]
    assert torch.equal(imported_features(imported), features(network))


def hollow(builder, **options):
    """The names and shapes of a network's state, in a small file."""
    with torch.device("meta"):
        state = builder(**options).state_dict()
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


def test_a_vision_transformer_says_its_side(tmp_path):
    torch.save(hollow(torchvision.models.vit_b_32, image_size=96), tmp_path / "foreign.pt")
    imported = import_encoder(tmp_path / "foreign.pt", backbone="vit_b_32")
    assert imported.side == 96
    assert imported.left_out == ["heads.head.weight", "heads.head.bias"]


def test_a_network_with_the_names_but_not_the_shapes_of_a_resnet_is_refused(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(hollow(torchvision.models.resnext50_32x4d), path)
    assert "name its backbone" in refusal(import_encoder, path)
    assert import_encoder(path, backbone="resnext50_32x4d").model["width"] == 1
    assert "unknown stem 'small'" in refusal(lambda: import_encoder(path, backbone="resnet18", stem="small"))
    assert "are for ResNets" in refusal(lambda: import_encoder(path, backbone="resnext50_32x4d", stem="cifar"))


def test_a_resnet_of_other_depths_is_refused(tmp_path):
    state = {name: value for name, value in resnet().state_dict().items() if not name.startswith("layer4.1.")}
    torch.save(state, tmp_path / "foreign.pt")
    assert "[2, 2, 2, 1] BasicBlocks" in refusal(import_encoder, tmp_path / "foreign.pt")


# --- import: what is not understood -----------------------------------------------------------------------------------


def test_missing_and_unmatched_entries_are_listed_and_refused_unless_partial(tmp_path):
    network, path = resnet(), tmp_path / "foreign.pt"
    state = network.state_dict()
    del state["layer3.1.bn2.weight"], state["bn1.num_batches_tracked"]
    torch.save(state | {"queue": torch.ones(3), "fc.weight": torch.ones(3, 64)}, path)
    message = refusal(import_encoder, path)
    assert "1 entries are absent (layer3.1.bn2.weight)" in message
    assert "1 entries are neither of it nor of a known head (queue)" in message
    imported = import_encoder(path, partial=True)
    assert (imported.missing, imported.unmatched) == (["layer3.1.bn2.weight"], ["queue"])
    assert imported.left_out == ["fc.weight"]
    assert imported.weights.keys() == network.state_dict().keys()
    assert torch.equal(imported.weights["layer3.1.bn2.weight"], torch.ones(64 // 2))


def test_a_count_of_batches_may_be_missing(tmp_path):
    network = resnet()
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "foreign.pt")
    assert torch.equal(imported_features(import_encoder(tmp_path / "foreign.pt")), features(network))


REFUSED = {
    "no encoder": (
        {"a.weight": torch.ones(2), "b.weight": torch.ones(2)},
        "auto",
        "'conv1.weight'.*a.weight, b.weight",
    ),
    "two encoders": (
        {f"{name}.conv1.weight": torch.ones(4, 3, 7, 7) for name in ("encoder", "backbone")},
        "auto",
        "several encoders.*encoder.conv1.weight, backbone.conv1.weight.*spijkervet",
    ),
    "another layout": ({"conv1.weight": torch.ones(4, 3, 7, 7)}, "sthalles", "no encoder .*conv1.weight"),
    "no such layout": ({"conv1.weight": torch.ones(4, 3, 7, 7)}, "lightl", "did you mean 'lightly'"),
    "a whole network": (nn.Linear(2, 2), "auto", "no state dict.*state_dict()"),
    "a tensor": (torch.ones(2), "auto", "no state dict"),
    "no tensors": ({"state_dict": {"epoch": 3}}, "auto", "no state dict"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_in_a_sentence(kind, tmp_path):
    content, layout, message = REFUSED[kind]
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=message.replace("()", r"\(\)")):
        import_encoder(tmp_path / "foreign.pt", layout)


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
    assert str(path) in refusal(read_foreign, path)


# --- import: nothing is run -------------------------------------------------------------------------------------------


class Call:
    """An object whose unpickling is a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["beside", "inside", "key", "whole"])
@pytest.mark.parametrize("kind", ["mkdir", "eval", "torch.load"])
def test_a_file_that_would_run_code_runs_nothing(kind, where, legacy, tmp_path):
    mark, path, network = tmp_path / "ran", tmp_path / "foreign.ckpt", resnet()
    bomb = {
        "mkdir": Bomb(mark),
        "eval": Call(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "torch.load": Call(torch.storage._load_from_bytes, pickle.dumps(Bomb(mark))),
    }[kind]
    state = network.state_dict()
    content = {
        "beside": {"state_dict": state, "hyper_parameters": [bomb]},
        "inside": {"state_dict": dict(state) | {"bomb": bomb}},
        "key": {"state_dict": state, bomb: 1},
        "whole": bomb,
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if where == "whole":
        assert "no state dict" in refusal(read_foreign, path)
    else:
        assert torch.equal(imported_features(import_encoder(path)), features(network))
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
    assert str(path) in refusal(read_foreign, path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "stain")


# --- export -----------------------------------------------------------------------------------------------------------

STANDARD = {"stem": "imagenet", "width": 1.0}
FACTS = {"data": "digits, 1,293 images", "digest": "0123", "kNN top-1": "0.913"}


@pytest.fixture(scope="module")
def small():
    config = tiny(name="mine", data={"side": 32, "dir": "/home/me/private"})
    return config, trained(config, 32)


@pytest.fixture(scope="module")
def standard():
    """One whose views are larger than the images that are stored."""
    config = tiny(name="mine", data={"side": 24}, augment={"crop": {"size": 32}}, model=STANDARD)
    return config, trained(config, 32)


def card_lines(file):
    return file.with_suffix(".md").read_text(encoding="utf-8").split("```")[1].removeprefix("python\n")


@pytest.mark.parametrize("format", EXPORTS)
def test_the_lines_of_the_card_give_the_features(format, small, standard, tmp_path, monkeypatch):
    config, model = small if EXPORTS[format].holds(small[0].model) else standard
    found = export_encoder(model.state_dict(), config, tmp_path / "out", format, FACTS)
    assert found.file.name == f"mine-{format}{EXPORTS[format].suffix}"
    assert found.difference <= found.tolerance <= 1e-4
    monkeypatch.chdir(found.file.parent)
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        scope = {"images": images}
        exec(card_lines(found.file), scope)
        with torch.no_grad():
            h = model(images)[0]
        assert (torch.as_tensor(scope["features"]) - h).abs().max() <= found.tolerance * h.abs().max()
    card = found.file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"- {key}: {value}" in card for key, value in FACTS.items())
    assert "private" not in card
    assert sorted(path.name for path in found.file.parent.iterdir()) == sorted((f"mine-{format}.md", found.file.name))


def test_a_backbone_of_torchvision_with_a_norm_in_its_classifier_is_exported(tmp_path):
    config = tiny(data={"side": 32}, model=STANDARD | {"backbone": "convnext_tiny"})
    export_encoder(trained(config, 32).state_dict(), config, tmp_path / "deep" / "encoder.pth", "torchvision", {})
    assert "encoder.classifier = encoder.classifier[:2]" in card_lines(tmp_path / "deep" / "encoder.pth")


def test_the_suites_own_file_holds_no_head_and_no_folder(small, tmp_path):
    config, model = small
    export_encoder(model.state_dict(), config, tmp_path / "encoder.safetensors", "safetensors", FACTS)
    found, weights, digest = load_weights(tmp_path / "encoder.safetensors")
    assert (found.model.head, found.data.dir, digest) == ("none", None, "0123")
    assert weights.keys() == {name for name in model.state_dict() if not name.startswith("head.")}
    assert (found.optim, found.augment) == (config.optim, config.augment)


def test_the_network_is_left_as_it_was(small, tmp_path):
    config, model = small
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    export_encoder(model.state_dict(), config, tmp_path, "safetensors", {})
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()


@pytest.mark.parametrize("format", ["torchvision", "sequential"])
def test_an_exported_file_is_imported_again(format, standard, tmp_path):
    config, model = standard
    file = export_encoder(model.state_dict(), config, tmp_path, format, {}).file
    imported = import_encoder(file)
    assert all(torch.equal(imported.weights[name], value) for name, value in model.encoder.state_dict().items())


@pytest.mark.parametrize("format", ["torchvision", "timm", "sequential"])
@pytest.mark.parametrize("change", [{"stem": "cifar"}, {"width": 0.5}])
def test_a_format_that_cannot_hold_the_encoder_says_which_can(format, change, tmp_path):
    config = tiny(model=STANDARD | change)
    message = refusal(export_encoder, trained(config, 16), config, tmp_path, format, {})
    assert message.endswith("choose from safetensors, onnx, pt2")


def test_timm_is_for_resnets(tmp_path):
    config = tiny(model=STANDARD | {"backbone": "convnext_tiny"})
    assert "choose from safetensors, torchvision, onnx, pt2" in refusal(
        export_encoder, None, config, tmp_path, "timm", {}
    )


def test_a_file_with_other_features_does_not_appear(standard, tmp_path, monkeypatch):
    def spoil(path, encoder, digest):
        torch.save({key: value * 1.01 for key, value in encoder.model.encoder.state_dict().items()}, path)

    config, model = standard
    monkeypatch.setitem(EXPORTS, "torchvision", EXPORTS["torchvision"]._replace(write=spoil))
    with pytest.raises(RunFailed, match="other features"):
        export_encoder(model.state_dict(), config, tmp_path, "torchvision", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_library_that_is_not_installed_is_named(library, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    message = refusal(export_encoder, small[1], small[0], tmp_path, "onnx", {})
    assert f"needs {library}: pip install 'simclr-suite[export]'" in message


def test_bad_names_are_refused(small, tmp_path):
    config, model = small
    assert "did you mean 'onnx'" in refusal(export_encoder, model, config, tmp_path, "onx", {})
    assert "does not end in .pt2" in refusal(export_encoder, model, config, tmp_path / "encoder.pth", "pt2", {})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFailed, match=r"mine-safetensors\.safetensors"):
        export_encoder(small[1].state_dict(), small[0], tmp_path / "file", "safetensors", {})


def test_normalization_is_inside_or_in_the_lines(standard, tmp_path):
    config, model = standard
    inside = export_encoder(model.state_dict(), config, tmp_path, "safetensors", {}).file
    assert load_encoder(inside).model.mean.flatten().tolist() == pytest.approx(MEAN)
    lines = card_lines(export_encoder(model.state_dict(), config, tmp_path, "torchvision", {}).file)
    assert str(list(MEAN)) in lines
    assert str(list(STD)) in lines
