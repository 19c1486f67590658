"""Every exported file gives the encoder's features when it is loaded by the lines on its card."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from simclr import load_encoder
from simclr.errors import RunFailed
from simclr.weights.checkpoint import load_weights
from simclr.weights.export import EXPORTS, export_encoder
from simclr.weights.foreign import import_encoder
from tests.helpers import tiny
from tests.simclr.weights.helpers import MEAN, STD, error_of, shrink_convnext, trained

STANDARD = {"stem": "imagenet", "width": 1.0}
FACTS = {"data": "digits, 1,293 images", "digest": "0123", "kNN top-1": "0.913"}


@pytest.fixture(scope="module")
def small():
    config = tiny(name="mine", data={"side": 32, "dir": "/home/me/private"}, model={"backbone": "resnet10"})
    return config, trained(config, 32)


@pytest.fixture(scope="module")
def standard():
    """A backbone of torchvision, with views that are larger than the stored images."""
    config = tiny(name="mine", data={"side": 24}, augment={"crop": {"size": 32}}, model=STANDARD)
    return config, trained(config, 32)


@pytest.fixture(scope="module")
def exported(small, standard, tmp_path_factory):
    """Exports a format on first use, and returns its network and its Parity."""
    done, folder = {}, tmp_path_factory.mktemp("exports")

    def export(format):
        if format not in done:
            config, model = small if EXPORTS[format].supports(small[0].model) else standard
            done[format] = model, export_encoder(model.state_dict(), config, folder / format, format, FACTS)
        return done[format]

    yield export
    shutil.rmtree(folder)


def card_lines(file):
    return card_code(file)[1]


def card_code(file):
    """The code that prepares an image, and the code that computes features."""
    return re.findall(r"```python\n(.*?)```", file.with_suffix(".md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("size", "exif"), [((300, 200), 6), ((32, 32), 1), ((20, 50), 3)])
@pytest.mark.parametrize("kind", ["small", "standard"])  # the latter has views that are larger than stored images
def test_the_card_says_how_an_image_is_prepared(kind, size, exif, tmp_path, monkeypatch, request):
    config, model = request.getfixturevalue(kind)
    parity = export_encoder(model.state_dict(), config, tmp_path / "export", "safetensors", FACTS)
    orientation = Image.Exif()
    orientation[274] = exif
    colours = np.random.default_rng(0).integers(0, 256, (*reversed(size), 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.jpg", exif=orientation)
    monkeypatch.chdir(tmp_path)
    exec(card_code(parity.file)[0], scope := {})
    encoder = load_encoder(parity.file)
    assert scope["images"].shape == (1, 3, encoder.side, encoder.side)
    with Image.open("photo.jpg") as image:
        transformed = encoder.transform(image)[None]
    if kind == "small":
        assert torch.equal(scope["images"], transformed)
    with torch.no_grad():
        torch.testing.assert_close(encoder(scope["images"]), encoder(transformed))


@pytest.mark.parametrize("format", EXPORTS)
def test_the_lines_on_the_card_give_the_features(format, exported, monkeypatch):
    model, parity = exported(format)
    stem = "mine" if format == "safetensors" else f"mine-{format}"
    assert parity.file.name == f"{stem}{EXPORTS[format].suffix}"
    assert parity.difference <= parity.tolerance <= 1e-4
    monkeypatch.chdir(parity.file.parent)
    scope = {"images": torch.rand(5, 3, 32, 32)}  # another batch size than that of the trace
    exec(card_lines(parity.file), scope)
    with torch.no_grad():
        h = model(scope["images"])[0]
    assert (torch.as_tensor(scope["features"]) - h).abs().max() <= parity.tolerance * h.abs().max()
    card = parity.file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"- {key}: {value}" in card for key, value in FACTS.items())
    assert "private" not in card
    assert ("resizes them to" in card) == (format == "safetensors")
    assert "normalise" in card
    assert 'head = "mlp"' in card  # as it was trained
    assert {path.name for path in parity.file.parent.iterdir()} == {f"{stem}.md", parity.file.name}


@pytest.mark.parametrize("format", ["torchvision", "sequential"])
def test_an_exported_file_can_be_imported(format, exported):
    model, parity = exported(format)
    weights = import_encoder(parity.file).weights
    assert all(torch.equal(weights[name], value) for name, value in model.encoder.state_dict().items())


def test_the_suites_own_file_has_neither_head_nor_folder(small, exported):
    config, model = small
    found, weights, digest = load_weights(exported("safetensors")[1].file)
    assert (found.model.head, found.data.dir, digest) == ("none", None, "0123")
    assert weights.keys() == {name for name in model.state_dict() if not name.startswith("head.")}
    assert (found.optim, found.augment) == (config.optim, config.augment)


def test_normalization_is_in_the_file_or_in_the_lines(exported):
    inside = load_encoder(exported("safetensors")[1].file).model
    assert inside.mean.flatten().tolist() == pytest.approx(MEAN)
    lines = card_lines(exported("torchvision")[1].file)
    assert str(list(MEAN)) in lines
    assert str(list(STD)) in lines


def test_a_norm_in_torchvisions_classifier_is_kept(tmp_path, monkeypatch):
    shrink_convnext(monkeypatch)
    config = tiny(data={"side": 32}, model=STANDARD | {"backbone": "convnext_tiny"})
    export_encoder(trained(config, 32).state_dict(), config, tmp_path / "deep" / "encoder.pth", "torchvision", {})
    assert "encoder.classifier = encoder.classifier[:2]" in card_lines(tmp_path / "deep" / "encoder.pth")


def test_the_network_is_not_changed(small, tmp_path):
    config, model = small
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    export_encoder(model.state_dict(), config, tmp_path, "safetensors", {})
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()


@pytest.mark.parametrize("format", ["torchvision", "timm", "sequential"])
@pytest.mark.parametrize("change", [{"stem": "cifar"}, {"width": 0.5}])
def test_a_format_that_cannot_hold_the_encoder_names_those_that_can(format, change, tmp_path):
    message = error_of(export_encoder, {}, tiny(model=STANDARD | change), tmp_path, format, {})
    assert message.endswith("choose from safetensors, onnx, pt2")


def test_timm_is_for_resnets(tmp_path):
    config = tiny(model=STANDARD | {"backbone": "convnext_tiny"})
    message = error_of(export_encoder, {}, config, tmp_path, "timm", {})
    assert message.endswith("choose from safetensors, torchvision, onnx, pt2")


def test_a_file_with_other_features_is_removed(small, tmp_path, monkeypatch):
    def spoil(encoder, digest):
        broken = load_encoder(tmp_path / "whole.safetensors")
        next(broken.model.encoder.parameters()).data.mul_(1.01)
        return content(broken, digest)

    config, model = small
    content = EXPORTS["safetensors"].content
    export_encoder(model.state_dict(), config, tmp_path / "whole.safetensors", "safetensors", {})
    monkeypatch.setitem(EXPORTS, "safetensors", EXPORTS["safetensors"]._replace(content=spoil))
    with pytest.raises(RunFailed, match="different features"):
        export_encoder(model.state_dict(), config, tmp_path / "spoilt.safetensors", "safetensors", {})
    assert {path.name for path in tmp_path.iterdir()} == {"whole.md", "whole.safetensors"}


@pytest.mark.parametrize("format", EXPORTS)
def test_a_full_disk_leaves_nothing_of_any_format_and_is_reported(format, small, standard, exported, tmp_path):
    """On a full disk, torch.export.save ends the process."""
    resource = pytest.importorskip("resource")
    model, parity = exported(format)
    config = (small if model is small[1] else standard)[0]
    path = tmp_path / parity.file.name
    path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (parity.file.stat().st_size // 2, hard))
    try:
        with pytest.raises(RunFailed, match=f"can't write {path}: File too large. Free some space"):
            export_encoder(model.state_dict(), config, tmp_path, format, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_library_that_is_not_installed_is_named(library, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    message = error_of(export_encoder, {}, small[0], tmp_path, "onnx", {})
    assert f"needs {library}: pip install 'simclr-suite[export]'" in message


def test_unknown_formats_and_wrong_suffixes_are_rejected(small, tmp_path):
    config = small[0]
    assert "did you mean 'onnx'" in error_of(export_encoder, {}, config, tmp_path, "onx", {})
    assert "does not end in .pt2" in error_of(export_encoder, {}, config, tmp_path / "encoder.pth", "pt2", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_named(small, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunFailed, match=r"can't write .*/file/mine\."):
        export_encoder(small[1].state_dict(), small[0], tmp_path / "file", "safetensors", {})


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../x", "x"),
        ("/etc/x", "x"),
        ("..\\x", "x"),
        ("a/..", "encoder"),
        ("a:b?", "a_b_"),
        ("a=[0.1, 1.0] é", "a=[0.1, 1.0] é"),
        ("é" * 500, "é" * 100),
    ],
)
def test_a_name_does_not_choose_where_an_encoder_is_written(name, file, small, tmp_path):
    config, model = small
    inside = tmp_path / "inside"
    parity = export_encoder(model.state_dict(), config.model_copy(update={"name": name}), inside, "safetensors", FACTS)
    assert parity.file == inside / f"{file}.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert len(list(inside.iterdir())) == 2


def test_a_card_shows_names_literally(small, tmp_path):
    config, model = small
    named = config.model_copy(update={"name": "<b>[a](http://b)"})
    parity = export_encoder(model.state_dict(), named, tmp_path, "safetensors", {"digest": "", "run": "`x`\n# y"})
    card = parity.file.with_suffix(".md").read_text()
    assert card.startswith("# \\<b\\>\\[a\\](http://b): a resnet10 encoder\n\n- digest: \n- run: \\`x\\` # y\n")
