"""The wheel has everything that an installed suite needs, and works outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_their_data_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"simclr", "experiments", "analysis", "cli.py"}
    data = {
        path.relative_to(ROOT).as_posix()
        for room, suffixes in {"experiments": (".toml",), "analysis": (".jinja", ".css", ".js")}.items()
        for path in (ROOT / room).rglob("*")
        if path.suffix in suffixes
    }
    assert len(data) > 5
    assert data == {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    assert wheel.name.startswith("simclr_suite-")


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """The new environment has the wheel, and uses this one's dependencies through a .pth file."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    import torch

    (Path(site) / "lent.pth").write_text(str(Path(torch.__file__).parent.parent))
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SIMCLR"))}
    code = "import simclr, experiments, analysis, cli; print(simclr.__file__, experiments.__file__, cli.__file__)"
    where = subprocess.run(
        [python, "-c", code], cwd=empty, env=clean, capture_output=True, text=True, check=True
    ).stdout
    assert all(Path(path).is_relative_to(environment) for path in where.split())
    for arguments, expected in ((["presets"], "shapes"), (["pretrain", "--help"], "--preset")):
        command = [bin_folder / "simclr", *arguments]
        done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
