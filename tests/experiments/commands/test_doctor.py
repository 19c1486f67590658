"""experiments/commands/doctor.py. What it shows is tested in tests/experiments/configs/test_machine.py."""

from __future__ import annotations

import json

import pytest

from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.configs.machine.seconds_per_image", lambda config: 0.001)


def test_doctor_shows_the_machine_in_80_columns_and_as_json(run: Run) -> None:
    done = run("doctor", "--config", "tiny.toml", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "\nspeed     1000 images/s with tiny (measured now" in done.stdout
    assert " images/s in the run tiny-s0\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    facts = json.loads(run("doctor", "--config", "tiny.toml", "--device", "cpu", "--json").stdout)
    assert facts["images_per_second"] == 1000
    assert all(text in " ".join(done.stdout.split()) for text in facts["slow"] if "load" not in text)


def test_a_device_that_is_not_there_is_one_line_and_exit_code_2(run: Run) -> None:
    assert_one_line(run("doctor", "--device", "tpu"), 2, "device 'tpu' is not available here")
