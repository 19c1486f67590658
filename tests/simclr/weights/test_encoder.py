"""The public Python API: an encoder from its file alone, and the pixels and features that training saw."""

import os
import subprocess
import sys
import tomllib
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import simclr
from simclr import load_encoder
from simclr.config import make, to_toml
from simclr.data.images import Decoding, decode, files_at
from simclr.errors import BadSettings, UserError
from simclr.progress import Observer
from simclr.settings import read_toml
from simclr.weights.checkpoint import save, save_weights
from simclr.weights.encoder import Encoder, embed_files
from tests.helpers import tiny
from tests.simclr.weights.helpers import noise, trained


@pytest.fixture(scope="module")
def model():
    return trained(tiny(), 16)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_weights(path, model, {"config": to_toml(tiny()), "digest": "0123"})
    return path


@pytest.fixture(scope="module")
def encoder(path):
    return load_encoder(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Eleven images of various sizes."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"é {i}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(20 + i, 40 - i, 3, seed=i)).save(path)
    return paths


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_features_are_the_trained_networks_h(model, encoder):
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(encoder(images), model(images)[0])
    assert encoder(images).shape == (5, encoder.features)
    assert (encoder.features, encoder.side, encoder.config) == (64, 16, tiny())
    assert not encoder.training


def test_a_checkpoint_and_a_path_as_text_can_be_loaded(model, encoder, tmp_path):
    state = {"config": to_toml(tiny()), "digest": "0123", "model": model.state_dict()}
    loaded = load_encoder(str(save(tmp_path, 1, state)))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), encoder(images))


def test_files_of_release_0_1_can_be_loaded(tmp_path):
    config = Path(__file__).with_name("config-0.1.toml")
    model = trained(make(read_toml(config)), 16)
    state, metadata = model.state_dict(), {"config": config.read_text(), "digest": "0123"}
    layout = str([(name, tuple(tensor.shape)) for name, tensor in state.items()])
    assert blake2b(layout.encode(), digest_size=8).hexdigest() == LAYOUT
    torch.save(metadata | {"model": state}, tmp_path / "step-000000001.pt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors", metadata)
    images = torch.rand(2, 3, 16, 16)
    for name in ("step-000000001.pt", "model.safetensors"):
        assert torch.equal(load_encoder(tmp_path / name)(images), model(images)[0])


LAYOUT = "8b39254e5f4252ea"  # hash of the names and shapes of all tensors in release 0.1


def test_bytes_grey_images_and_doubles_have_the_features_of_their_floats(encoder):
    pixels = torch.from_numpy(noise(20, 16, 3)).permute(2, 0, 1)[None]  # another height than the encoder's side
    floats = pixels.float() / 255
    assert torch.equal(encoder(pixels), encoder(floats))
    assert torch.equal(encoder(floats.double()), encoder(floats))
    assert torch.equal(encoder(pixels[:, :1]), encoder(floats[:, :1].expand(-1, 3, -1, -1)))
    square = torch.nn.functional.interpolate(floats, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(encoder(floats), encoder(square))


WRONG = {
    "0 to 255": (
        torch.full((2, 3, 16, 16), 255.0),
        r"between 255 and 255, expected floats in \[0, 1\]: divide by 255$",
    ),
    "16 bits": (torch.full((1, 3, 4, 4), 4095.0), "divide by the largest value that a pixel can have$"),
    "mask": (torch.ones(1, 3, 4, 4, dtype=torch.bool), r"convert them with \.float\(\)$"),
    "normalised": (torch.full((1, 3, 4, 4), -2.0), "don't normalise them, because the encoder does that$"),
    "not finite": (torch.full((1, 3, 4, 4), torch.nan), "some are not finite$"),
    "int64": (torch.zeros(2, 3, 16, 16, dtype=torch.int64), r"are torch\.int64, expected uint8, .*: divide by the"),
    "NHWC": (torch.zeros(2, 16, 16, 3), r"shape \(2, 16, 16, 3\), .* with images\.permute\(0, 3, 1, 2\)$"),
    "HWC": (torch.zeros(16, 16, 3), r"with images\.permute\(2, 0, 1\)\[None\]$"),
    "one image": (torch.zeros(3, 16, 16), r"add a dimension with images\[None\]$"),
    "an array": (np.zeros((2, 3, 16, 16)), r"a ndarray: expected a tensor, as torch\.from_numpy makes$"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_images_are_refused_with_a_remedy(kind, encoder):
    images, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        encoder(images)


def test_it_can_be_fine_tuned(path):
    encoder = load_encoder(path)
    encoder(torch.rand(4, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_stored_side_of_the_config_is_kept(model, tmp_path):
    save_weights(tmp_path / "m.safetensors", model, {"config": to_toml(tiny(data={"side": 24})), "digest": ""})
    assert load_encoder(tmp_path / "m.safetensors").side == 24


def test_images_are_stored_at_one_size_and_processed_at_the_size_of_views(tmp_path):
    config = tiny(augment={"crop": {"size": 24}})
    path = tmp_path / "m.safetensors"
    save_weights(path, trained(config, 24), {"config": to_toml(config), "digest": ""})
    encoder = load_encoder(path)
    image = encoder.transform(Image.fromarray(noise(40, 40, 3)))
    assert (image.shape, encoder.side) == ((3, 16, 16), 24)
    seen = []
    encoder.model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    encoder(image.unsqueeze(0))
    assert seen == [(24, 24)]


def test_weights_of_another_network_are_rejected(model, tmp_path):
    config = tiny(model={"width": 0.25})
    save_weights(tmp_path / "m.safetensors", model, {"config": to_toml(config), "digest": ""})
    with pytest.raises(UserError, match=r"different architecture: encoder\.conv1\.weight"):
        load_encoder(tmp_path / "m.safetensors")


def test_the_package_imports_torch_only_for_the_encoder():
    code = "import sys, simclr; assert 'torch' not in sys.modules; assert not hasattr(simclr, 'nothing')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert simclr.Encoder.__module__ == simclr.load_encoder.__module__ == "simclr.weights.encoder"


# --- images -----------------------------------------------------------------------------------------------------------

exif = Image.Exif()
exif[0x0112] = 6  # turned by 90 degrees
IMAGES = {
    "wide": (Image.fromarray(noise(30, 50, 3)), "PNG", {}),
    "high": (Image.fromarray(noise(50, 21, 3)), "PNG", {}),
    "small": (Image.fromarray(noise(5, 9, 3)), "PNG", {}),
    "grey": (Image.fromarray(noise(40, 30)), "PNG", {}),
    "grey with alpha": (Image.fromarray(noise(40, 30)).convert("LA"), "PNG", {}),
    "RGBA": (Image.fromarray(noise(33, 47, 4)), "PNG", {}),
    "palette": (Image.fromarray(noise(33, 47, 3)).convert("P"), "PNG", {}),
    "bits": (Image.fromarray(noise(33, 47)).convert("1"), "PNG", {}),
    "CMYK": (Image.fromarray(noise(33, 47, 4), "CMYK"), "JPEG", {}),
    "large JPEG": (Image.fromarray(noise(300, 400, 3)), "JPEG", {}),
    "turned": (Image.fromarray(noise(60, 90, 3)), "JPEG", {"exif": exif}),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_transform_gives_the_pixels_of_the_image_store(kind, encoder):
    image, format, options = IMAGES[kind]
    file = BytesIO()
    image.save(file, format, **options)
    found = encoder.transform(Image.open(file))
    assert (found.dtype, found.shape) == (torch.float32, (3, 16, 16))
    assert torch.equal(found, torch.tensor(decode(file.getvalue(), Decoding(16)).pixels).float() / 255)


def test_wide_images_are_scaled_as_the_training_images_were(encoder, tmp_path):
    values = np.random.default_rng(1).integers(0, 4096, (40, 30), np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="trained on images of 8 bits"):
        encoder.transform(Image.open(tmp_path / "deep.png"))
    with pytest.raises(UserError, match=r"deep.png \(has 16-bit values"):
        next(embed_files(encoder, files_at([tmp_path / "deep.png"])))
    config = encoder.config.model_copy(update={"data": encoder.config.data.model_copy(update={"range": (0, 4095)})})
    trained = Encoder(make(tomllib.loads(to_toml(config))), encoder.model.state_dict())
    found = trained.transform(Image.open(tmp_path / "deep.png"))
    Image.fromarray((values * (255 / 4095)).round().astype(np.uint8)).save(tmp_path / "shallow.png")
    assert torch.equal(found, trained.transform(Image.open(tmp_path / "shallow.png")))


def test_transform_keeps_an_image_of_the_right_size(encoder):
    pixels = noise(16, 16, 3)
    found = encoder.transform(Image.fromarray(pixels)) * 255
    assert np.array_equal(found.round().numpy(), pixels.transpose(2, 0, 1))


# --- features of files ------------------------------------------------------------------------------------------------


def embed(encoder, files, **options):
    """Names and features of all batches."""
    names, features = zip(*embed_files(encoder, files_at(files), 4, **options), strict=True)
    return [name for batch in names for name in batch], np.concatenate(features)


def test_features_of_files_are_those_of_a_direct_forward(encoder, files):
    observer, seen = Observer(), []
    observer.progress = lambda what, done, total: seen.append((done, total))
    names, features = embed(encoder, files, observer=observer)
    with torch.no_grad():
        images = [torch.stack([encoder.transform(Image.open(file)) for file in files[i : i + 4]]) for i in (0, 4, 8)]
        direct = torch.cat([encoder(batch) for batch in images])
    assert names == [str(file) for file in files]
    assert features.dtype == np.float32
    assert np.array_equal(features, direct.numpy())
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_broken_images_are_named_or_skipped(encoder, files, tmp_path):
    broken, skipped = tmp_path / "broken.png", []
    broken.write_bytes(files[0].read_bytes()[:60])
    mixed = [files[0], broken, *files[1:], broken]  # the last batch has no other file
    with pytest.raises(UserError, match=r"1 of 13 files .*broken\.png .*Remove them, or add --on-bad-image skip$"):
        embed(encoder, mixed)
    names, features = embed(encoder, mixed, skipped=skipped)
    assert names == [str(file) for file in files]
    assert [text.split(" (")[0] for text in skipped] == [str(broken)] * 2
    np.testing.assert_allclose(features, embed(encoder, files)[1], rtol=1e-5, atol=1e-6)
    assert list(embed_files(encoder, files_at([broken]), skipped=[])) == []


def test_a_file_name_that_is_not_utf_8_is_escaped(encoder, files, tmp_path):
    try:
        odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")))
        odd.write_bytes(files[0].read_bytes())
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert embed(encoder, [odd])[0] == [str(tmp_path / "caf\\udce9.png")]


@pytest.mark.parametrize("number", [0.0, torch.nan])
@pytest.mark.parametrize("batch", [1, 4, 20])
def test_features_that_say_nothing_are_refused(number, batch, path, files):
    encoder = load_encoder(path)
    encoder.model.encoder.layer4[1].bn2.weight.data.zero_()
    encoder.model.encoder.layer4[0].bn2.weight.data.zero_()
    encoder.model.encoder.layer4[0].downsample[1].weight.data.fill_(number)
    with pytest.raises(BadSettings, match="not finite" if number else "11 images|collapsed"):
        list(embed_files(encoder, files_at(files), batch))
    if not number:  # equal images have equal features
        assert len(list(embed_files(encoder, files_at([files[0]] * 3), batch))) == -(-3 // batch)


def test_no_files_are_an_error(encoder):
    with pytest.raises(UserError, match="expected a folder with image files"):
        embed(encoder, [])
