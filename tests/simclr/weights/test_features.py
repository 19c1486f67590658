"""Features are written completely or not at all, in every format."""

import numpy as np
import pandas
import pyarrow.parquet
import pytest

from simclr.errors import RunFailed, UserError
from simclr.weights.features import WRITERS, holds_features, read_features, write_features

NAMES = [f"é {i}.png" for i in range(11)]
FEATURES = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)


def batches():
    for start in (0, 4, 8):
        yield NAMES[start : start + 4], FEATURES[start : start + 4]


def read_independently(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["files"].tolist(), arrays["features"]
    if path.suffix == ".csv":
        frame = pandas.read_csv(path, index_col="file", dtype={str(i): np.float32 for i in range(5)})
        return frame.index.tolist(), frame.to_numpy()
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["file", "features"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[5]"
    return table["file"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize("suffix", WRITERS)
def test_written_features_are_read_back(suffix, tmp_path):
    path = tmp_path / "deep" / f"features{suffix}"
    write_features(path, batches(), "an encoder")
    names, features = read_independently(path)
    assert names == NAMES
    assert features.dtype == np.float32
    assert np.array_equal(features, FEATURES)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_features_in_parquet_are_read_with_their_names_and_encoder(tmp_path):
    path = tmp_path / "f.parquet"
    write_features(path, batches(), "an encoder")
    assert holds_features(path)
    names, features, encoder = read_features(path)
    assert (names, encoder) == (NAMES, "an encoder")
    assert features.dtype == np.float32
    assert np.array_equal(features, FEATURES)


def test_other_files_hold_no_features(tmp_path):
    images = tmp_path / "images.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"png"], "label": [1]}), images)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    (tmp_path / "folder.parquet").mkdir()
    for path in (images, damaged, tmp_path, tmp_path / "folder.parquet", tmp_path / "absent.parquet"):
        assert not holds_features(path)


def test_features_of_a_damaged_file_are_refused(tmp_path):
    path = tmp_path / "f.parquet"
    write_features(path, batches(), "an encoder")
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)  # of the first column; the schema at the end is whole
    path.write_bytes(data)
    assert holds_features(path)
    with pytest.raises(UserError, match=r"can't read the features in .*Write them again with `simclr embed`"):
        read_features(path)


def test_parquet_has_a_row_group_for_each_batch(tmp_path):
    write_features(tmp_path / "f.parquet", batches(), "an encoder")
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
        write_features(path, failing(), "an encoder")
    with pytest.raises(UserError, match="none of the files can be read"):
        write_features(path, iter([]), "an encoder")
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_suffix_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"can't write 'f.txt': expected a name ending in .parquet or .npz or .csv"):
        write_features(tmp_path / "f.txt", batches(), "an encoder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunFailed, match=r"file.f\.npz"):
        write_features(tmp_path / "file" / "f.npz", batches(), "an encoder")
