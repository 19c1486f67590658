"""Features are written completely or not at all, in every format."""

import numpy as np
import pyarrow.parquet
import pytest

from simclr.errors import RunFailed, UserError
from simclr.weights.features import WRITERS, write_features

NAMES = [f"é {i}.png" for i in range(11)]
FEATURES = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)


def batches():
    for start in (0, 4, 8):
        yield NAMES[start : start + 4], FEATURES[start : start + 4]


def read_features(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["files"].tolist(), arrays["features"]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["file", "features"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[5]"
    return table["file"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize("suffix", WRITERS)
def test_written_features_are_read_back(suffix, tmp_path):
    path = tmp_path / "deep" / f"features{suffix}"
    write_features(path, batches())
    names, features = read_features(path)
    assert names == NAMES
    assert features.dtype == np.float32
    assert np.array_equal(features, FEATURES)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet_has_a_row_group_for_each_batch(tmp_path):
    write_features(tmp_path / "f.parquet", batches())
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "f.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 3]


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_error_keeps_the_file_that_was_there_before(suffix, tmp_path):
    def failing():
        yield NAMES[:4], FEATURES[:4]
        raise UserError("a broken image")

    path = tmp_path / f"features{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match="a broken image"):
        write_features(path, failing())
    with pytest.raises(UserError, match="none of the files can be read"):
        write_features(path, iter([]))
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_suffix_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"can't write 'f.csv': expected a name ending in .parquet or .npz"):
        write_features(tmp_path / "f.csv", batches())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunFailed, match=r"file.f\.npz"):
        write_features(tmp_path / "file" / "f.npz", batches())
