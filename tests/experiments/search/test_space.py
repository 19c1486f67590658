from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve_timed
from experiments.search.space import Parameter, check_space, space, starting_point, suggested
from simclr.errors import UserError
from tests.helpers import tiny


@pytest.mark.parametrize("name", [name for name in presets() if resolve_timed(name)[1] is None])
def test_the_space_that_comes_with_the_suite_goes_with_every_preset(name: str) -> None:
    check_space(space(), resolve_timed(name)[0])


def test_the_space_that_comes_with_the_suite_is_valid_and_conditional() -> None:
    parameters = space()
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        values = suggested(trial, parameters, tiny())
        changed(tiny(), values)
        seen.add((values["optim.name"], "model.hidden_dim" in values, values["model.head"]))
        low, high = {"adamw": (3e-4, 1e-2), "sgd": (1e-2, 0.3), "lars": (0.1, 3.0), "muon": (5e-3, 5e-2)}[
            values["optim.name"]
        ]
        assert low <= values["optim.lr"] <= high
        study.tell(trial, 0.0)
    assert all(wide == (head != "linear") for _, wide, head in seen)
    assert {name for name, _, _ in seen} == {"adamw", "sgd", "lars", "muon"}


def test_the_starting_point_is_the_config_as_far_as_the_space_holds_it() -> None:
    start = tiny(optim={"name": "sgd", "lr": 0.1}, loss={"temperature": 0.01}, model={"head": "mlp", "hidden_dim": 512})
    given = starting_point(space(), start)
    assert given["optim.lr (optim.name=sgd)"] == 0.1
    assert not any(name.startswith("optim.lr") and "sgd" not in name for name in given)
    assert "loss.temperature" not in given  # the space begins at 0.05
    study = optuna.create_study()
    study.enqueue_trial(given)
    values = suggested(study.ask(), space(), start)
    assert (values["optim.name"], values["optim.lr"], values["model.hidden_dim"]) == ("sgd", 0.1, 512)
    assert 0.05 <= values["loss.temperature"] <= 1.0  # drawn
    held = [p for p in space() if p.setting in ("optim.name", "optim.lr", "model.head")]
    study.enqueue_trial(starting_point(held, start))
    assert changed(start, suggested(study.ask(), held, start)).key() == start.key()


BAD_SPACES = {
    "setting = 'optim.rate'\nlow = 1\nhigh = 2": "unknown setting 'optim.rate': did you mean",
    "setting = 'optim.lr'\nlow = 2.0\nhigh = 1.0": "an empty range: low = 2.0 is not below high = 1.0",
    "setting = 'optim.lr'\nlow = 2.0": "expected either choices, or low and high",
    "setting = 'optim.lr'\nchoices = []": "expected either choices, or low and high",
    "setting = 'optim.lr'\nvalues = [1]": "unknown setting 'values'",
    "setting = 'optim.lr'\nlow = 0.0\nhigh = 1.0\nlog = true": "a logarithmic range begins above 0, not at low = 0.0",
    "setting = 'data.split_seed'\nlow = 0\nhigh = 9": "data.split_seed can't be varied",
    "setting = 'optim.lr'\nlow = 0.1\nhigh = 1.0\n"
    "[[parameter]]\nsetting = 'optim.lr'\nchoices = [1.0]": "has 'optim.lr' twice",
    "setting = 'model.hidden_dim'\nchoices = [8]\nwhen = { 'model.head' = 'mlp' }\n"
    "[[parameter]]\nsetting = 'model.head'\nchoices = ['mlp']": "depends on 'model.head', which must stand before it",
    "setting = 'optim.lr'\nchoices = [1]\nwhen = { 'optim.nam' = 'sgd' }": "unknown setting 'optim.nam'",
}


@pytest.mark.parametrize("text", BAD_SPACES)
def test_a_bad_space_is_an_error_of_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(f"[[parameter]]\n{text}\n")
    with pytest.raises(UserError, match=BAD_SPACES[text]):
        space(tmp_path / "space.toml")


def test_a_space_without_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("lr = 1\n")
    with pytest.raises(UserError, match=r"has no \[\[parameter\]\]"):
        space(tmp_path / "space.toml")


def test_a_value_that_its_setting_can_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="unknown optimizer 'adam'"):
        check_space([Parameter(setting="optim.name", choices=("sgd", "adam"))], tiny())
    with pytest.raises(UserError, match=r"optim\.lr = -1"):
        check_space([Parameter(setting="optim.lr", low=-1.0, high=1.0)], tiny())
    check_space(space(), tiny())
