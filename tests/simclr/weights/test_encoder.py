"""The Python door: an encoder from its file alone, the suite's pixels for any image, features of files as written."""

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from simclr import load_encoder
from simclr.config import to_toml
from simclr.data.images import decode
from simclr.errors import RunFailed, UserError
from simclr.model import Network
from simclr.weights.checkpoint import save, save_weights
from simclr.weights.encoder import embed_files
from simclr.weights.features import WRITERS, write_features
from tests.helpers import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def trained(config, side):
    """A network whose batch norms have seen images."""
    model = Network(config.model, side, 0, MEAN, STD)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        model(torch.rand(16, 3, side, side, generator=generator))
    return model.eval()


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


def noise(height, width, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


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


def test_a_checkpoint_and_a_path_as_text_are_taken_too(model, encoder, tmp_path):
    state = {"config": to_toml(tiny()), "digest": "0123", "model": model.state_dict()}
    loaded = load_encoder(str(save(tmp_path, 1, state)))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), encoder(images))


def test_it_can_be_fine_tuned(path):
    encoder = load_encoder(path)
    encoder(torch.rand(4, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_stored_side_of_the_config_is_kept(model, tmp_path):
    save_weights(tmp_path / "m.safetensors", model, {"config": to_toml(tiny(data={"side": 24})), "digest": ""})
    assert load_encoder(tmp_path / "m.safetensors").side == 24


def test_images_are_stored_at_one_size_and_seen_at_the_views(tmp_path):
    config = tiny(augment={"crop": {"size": 24}})
    model, path = trained(config, 24), tmp_path / "m.safetensors"
    save_weights(path, model, {"config": to_toml(config), "digest": ""})
    encoder = load_encoder(path)
    image = encoder.transform(Image.fromarray(noise(40, 40, 3)))
    assert (image.shape, encoder.side) == ((3, 16, 16), 24)
    seen = []
    encoder.model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    encoder(image.unsqueeze(0))
    assert seen == [(24, 24)]


def test_weights_of_another_network_are_refused(model, tmp_path):
    config = tiny(model={"width": 0.25})
    save_weights(tmp_path / "m.safetensors", model, {"config": to_toml(config), "digest": ""})
    with pytest.raises(UserError, match=r"encoder\.conv1\.weight"):
        load_encoder(tmp_path / "m.safetensors")


def test_importing_the_package_imports_no_torch_until_the_encoder_is_asked_for():
    code = (
        "import sys, simclr; assert 'torch' not in sys.modules; from simclr import Encoder, load_encoder; "
        "assert 'torch' in sys.modules and load_encoder.__module__ == 'simclr.encoder'; "
        "assert not hasattr(simclr, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- images -----------------------------------------------------------------------------------------------------------

exif = Image.Exif()
exif[0x0112] = 6  # turned by 90 degrees
IMAGES = {
    "wide": (Image.fromarray(noise(30, 50, 3)), "PNG", {}),
    "high": (Image.fromarray(noise(50, 21, 3)), "PNG", {}),
    "small": (Image.fromarray(noise(5, 9, 3)), "PNG", {}),
    "grey": (Image.fromarray(noise(40, 30)), "PNG", {}),
    "grey, 16 bits": (Image.fromarray(noise(40, 30).astype(np.uint16) * 257), "PNG", {}),
    "grey with alpha": (Image.fromarray(noise(40, 30)).convert("LA"), "PNG", {}),
    "RGBA": (Image.fromarray(noise(33, 47, 4)), "PNG", {}),
    "palette": (Image.fromarray(noise(33, 47, 3)).convert("P"), "PNG", {}),
    "bits": (Image.fromarray(noise(33, 47)).convert("1"), "PNG", {}),
    "CMYK": (Image.fromarray(noise(33, 47, 4), "CMYK"), "JPEG", {}),
    "large JPEG": (Image.fromarray(noise(300, 400, 3)), "JPEG", {}),
    "turned": (Image.fromarray(noise(60, 90, 3)), "JPEG", {"exif": exif}),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_becomes_the_pixels_that_the_store_has(kind, encoder):
    image, format, options = IMAGES[kind]
    file = BytesIO()
    image.save(file, format, **options)
    found = encoder.transform(Image.open(file))
    assert (found.dtype, found.shape) == (torch.float32, (3, 16, 16))
    assert torch.equal(found, torch.tensor(decode(file.getvalue(), 16)).float() / 255)


def test_an_image_in_memory_of_the_right_size_is_taken_as_it_is(encoder):
    pixels = noise(16, 16, 3)
    found = encoder.transform(Image.fromarray(pixels)) * 255
    assert np.array_equal(found.round().numpy(), pixels.transpose(2, 0, 1))


# --- features of files ------------------------------------------------------------------------------------------------


def read_features(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["files"].tolist(), arrays["features"]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["file", "features"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[64]"
    return table["file"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize("suffix", WRITERS)
def test_written_features_are_those_of_a_direct_forward(suffix, encoder, files, tmp_path):
    path, seen = tmp_path / "deep" / f"features{suffix}", []
    write_features(path, embed_files(encoder, files, 4, lambda what, done, total: seen.append((done, total))))
    names, features = read_features(path)
    with torch.no_grad():
        images = [torch.stack([encoder.transform(Image.open(file)) for file in files[i : i + 4]]) for i in (0, 4, 8)]
        direct = torch.cat([encoder(batch) for batch in images])
    assert names == [str(file) for file in files]
    assert features.dtype == np.float32
    assert np.array_equal(features, direct.numpy())
    assert seen == [(4, 11), (8, 11), (11, 11)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet_is_written_a_batch_at_a_time(encoder, files, tmp_path):
    write_features(tmp_path / "f.parquet", embed_files(encoder, files, 4))
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "f.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 3]


@pytest.mark.parametrize("suffix", WRITERS)
def test_broken_images_are_named_and_what_was_there_before_stays(suffix, encoder, files, tmp_path):
    broken, path = tmp_path / "broken.png", tmp_path / f"features{suffix}"
    broken.write_bytes(files[0].read_bytes()[:60])
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=r"1 of 12 files .*broken\.png .*Remove them, or pass --on-bad-image skip$"):
        write_features(path, embed_files(encoder, [*files, broken], 4))
    assert path.read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.png", path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_broken_images_can_be_left_out_and_the_others_keep_their_features(suffix, encoder, files, tmp_path):
    broken, path, left_out = tmp_path / "broken.png", tmp_path / f"features{suffix}", []
    broken.write_bytes(files[0].read_bytes()[:60])
    mixed = [files[0], broken, *files[1:], broken]  # the last one is a batch of its own
    write_features(path, embed_files(encoder, mixed, 4, left_out=left_out))
    names, features = read_features(path)
    assert names == [str(file) for file in files]
    assert [text.split(" (")[0] for text in left_out] == [str(broken)] * 2
    write_features(tmp_path / f"whole{suffix}", embed_files(encoder, files, 4))
    np.testing.assert_allclose(features, read_features(tmp_path / f"whole{suffix}")[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="none of the files"):
        write_features(path, embed_files(encoder, [broken], 4, left_out=[]))
    assert read_features(path)[0] == names


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_name_that_is_no_utf_8_is_written_in_escapes(suffix, encoder, files, tmp_path):
    try:
        odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")))
        odd.write_bytes(files[0].read_bytes())
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    write_features(tmp_path / f"features{suffix}", embed_files(encoder, [odd]))
    assert read_features(tmp_path / f"features{suffix}")[0] == [str(tmp_path / "caf\\udce9.png")]


def test_no_files_and_another_suffix_are_refused(encoder, files, tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write_features(tmp_path / "f.npz", embed_files(encoder, []))
    with pytest.raises(UserError, match=r"'\.csv'.*\.npz, \.parquet"):
        write_features(tmp_path / "f.csv", embed_files(encoder, files))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(encoder, files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFailed, match=r"file.f\.npz"):
        write_features(tmp_path / "file" / "f.npz", embed_files(encoder, files))
