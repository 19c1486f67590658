"""Commands that write files, on a disk that is too small for them: an error of one line, and no part of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.commands.helpers import Run, assert_one_line

LEVELS = int(os.environ.get("SIMCLR_TEST_DISK_LEVELS", "2"))  # the long version has 20
DISK = 16 << 20  # bytes; the largest command below needs a fifth of it

COMMANDS = {
    "export": ["export", "tiny-s0", "--out", "DISK/out"],
    "export onnx": ["export", "tiny-s0", "--format", "onnx", "--out", "DISK/out"],
    "export pt2": ["export", "tiny-s0", "--format", "pt2", "--out", "DISK/out"],
    "embed parquet": ["embed", "tiny-s0", "IMAGES/two", "--out", "DISK/out/f.parquet"],
    "embed npz": ["embed", "tiny-s0", "IMAGES/two", "--out", "DISK/out/f.npz"],
    "views": ["views", "--config", "tiny.toml", "--out", "DISK/out/v.png"],
    "plot": ["plot", "loss", "tiny-s0", "--out", "DISK/out/curves"],
    "tsne": ["tsne", "tiny-s0", "--images", "60", "--perplexity", "10", "--out", "DISK/out/map"],
    "explore": ["explore", "tiny-s0", "--images", "60", "--out", "DISK/out/e.html"],
    "neighbours": ["neighbours", "tiny-s0", "IMAGES/flat/3.png", "--out", "DISK/out/n.png"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_reported_and_leaves_no_part_of_a_file(
    name: str, run: Run, small_disk: Callable[[int], Path], images: Path
) -> None:
    disk = small_disk(DISK)
    arguments = [word.replace("DISK", str(disk)).replace("IMAGES", str(images)) for word in COMMANDS[name]]
    out, filler = disk / "out", disk / "filler"
    out.mkdir()
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    sizes = {path: path.stat().st_size for path in out.iterdir()}
    for level in range(LEVELS):
        for path in out.iterdir():
            path.unlink()
        filler.write_bytes(bytes(DISK - level * sum(sizes.values()) // LEVELS))
        done = run(*arguments)
        if done.exit_code:
            assert_one_line(done, 1, "No space left on device. Free some space, or choose another place")
            assert list(out.iterdir()) == []
        else:
            assert {path: path.stat().st_size for path in out.iterdir()} == sizes
        assert level or done.exit_code == 1
        filler.unlink()
