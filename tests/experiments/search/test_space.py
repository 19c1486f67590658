"""The parameters that a search varies."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve_timed
from experiments.search.space import Parameter, check_space, fitting, load_space, starting_point, suggest_settings, used
from simclr.errors import UserError
from simclr.progress import Observer
from tests.helpers import tiny

RATES = {"adamw": (3e-4, 1e-2), "sgd": (1e-2, 0.3), "lars": (0.1, 3.0), "muon": (5e-3, 5e-2)}


@pytest.mark.parametrize("name", [name for name in presets() if resolve_timed(name)[1] is None])
def test_the_default_space_fits_every_preset(name: str) -> None:
    check_space(load_space(), resolve_timed(name)[0])


def test_the_default_space_is_conditional() -> None:
    parameters = load_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optimizers = set()
    for _ in range(60):
        values = suggest_settings(study.ask(), parameters, tiny())
        changed(tiny(), values)
        optimizers.add(values["optim.name"])
        low, high = RATES[values["optim.name"]]
        assert low <= values["optim.lr"] <= high
        assert ("model.hidden_dim" in values) == (values["model.head"] != "linear")
    assert optimizers == set(RATES)


def test_the_starting_point_is_the_config_where_the_space_contains_it() -> None:
    config = tiny(
        optim={"name": "sgd", "lr": 0.1}, loss={"temperature": 0.01}, model={"head": "mlp", "hidden_dim": 512}
    )
    start = starting_point(load_space(), config)
    assert start["optim.lr (optim.name=sgd)"] == 0.1
    assert not any(name.startswith("optim.lr") and "sgd" not in name for name in start)
    assert "loss.temperature" not in start  # the range is 0.05 to 1
    study = optuna.create_study()
    study.enqueue_trial(start)
    values = suggest_settings(study.ask(), load_space(), config)
    assert (values["optim.name"], values["optim.lr"], values["model.hidden_dim"]) == ("sgd", 0.1, 512)
    assert 0.05 <= values["loss.temperature"] <= 1.0  # sampled
    contained = [p for p in load_space() if p.setting in ("optim.name", "optim.lr", "model.head")]
    study.enqueue_trial(starting_point(contained, config))
    assert changed(config, suggest_settings(study.ask(), contained, config)).key() == config.key()


BAD_SPACES = {
    "setting = 'optim.rate'\nlow = 1\nhigh = 2": "unknown setting 'optim.rate': did you mean",
    "setting = 'optim.lr'\nlow = 2.0\nhigh = 1.0": "the range is empty: low = 2.0 must be less than high = 1.0",
    "setting = 'optim.lr'\nlow = 2.0": "expected either choices, or low and high",
    "setting = 'optim.lr'\nchoices = []": "expected either choices, or low and high",
    "setting = 'optim.lr'\nvalues = [1]": "unknown key 'values'",
    "setting = 'optim.lr'\nlow = 0.0\nhigh = 1.0\nlog = true": "low = 0.0 must be greater than 0",
    "setting = 'data.split_seed'\nlow = 0\nhigh = 9": "data.split_seed can't be varied",
    "setting = 'optim.lr'\nlow = 0.1\nhigh = 1.0\n"
    "[[parameter]]\nsetting = 'optim.lr'\nchoices = [1.0]": "has 'optim.lr' twice",
    "setting = 'model.hidden_dim'\nchoices = [8]\nwhen = { 'model.head' = 'mlp' }\n"
    "[[parameter]]\nsetting = 'model.head'\nchoices = ['mlp']": "depends on 'model.head', so move",
    "setting = 'optim.lr'\nchoices = [1]\nwhen = { 'optim.nam' = 'sgd' }": "unknown setting 'optim.nam'",
}


@pytest.mark.parametrize("text", BAD_SPACES)
def test_an_invalid_space_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(f"[[parameter]]\n{text}\n")
    with pytest.raises(UserError, match=BAD_SPACES[text]):
        load_space(tmp_path / "space.toml")


def test_a_space_without_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("lr = 1\n")
    with pytest.raises(UserError, match=r"has no \[\[parameter\]\]"):
        load_space(tmp_path / "space.toml")


def test_an_invalid_value_in_a_space_is_refused() -> None:
    with pytest.raises(UserError, match="unknown optimizer 'adam'"):
        check_space([Parameter(setting="optim.name", choices=("sgd", "adam"))], tiny())
    with pytest.raises(UserError, match=r"optim\.lr = -1"):
        check_space([Parameter(setting="optim.lr", low=-1.0, high=1.0)], tiny())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameter = 3", "has no [[parameter]]"),
        ("parameter = [3]", "parameter 1"),
        ("[[paramater]]\nsetting = 'seed'", "has no [[parameter]]"),
        ("[[parameter]]\nsetting = 'optim.lr'\nlow = 0.1\nhigh = 1.0\n[seeds]", "unknown table of"),
        ("[[parameter]]\nsetting = 'optim.lr'\nlow = true\nhigh = 2", "low"),
        ("[[parameter]]\nsetting = 'optim.lr'\nlow = '0.1'\nhigh = 2", "low"),
        ("[[parameter]]\nsetting = 'optim.lr'\nlow = nan\nhigh = 2", "nan can't be the value"),
        ("[[parameter]]\nsetting = 'optim.lr'\nchoices = 0.1", "choices = 0.1"),
        ("[[parameter]]\nsetting = 'seed'\nchoices = [1979-05-27]", "1979-05-27 can't be the value"),
        (f"[[parameter]]\nsetting = 'optim.lr'\nchoices = {list(range(1, 102))}", "choices"),
        ("[[parameter]]\nsetting = ['optim.lr']\nlow = 0.1\nhigh = 1.0", "setting"),
        ("[[parameter]]\nsetting = 'optim.lr'\nlow = 0.1\nhigh = 1.0\nwhen = 'always'", "when"),
    ],
)
def test_a_space_of_other_types_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(tmp_path / "space.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize("ends", [(0.5, 4.0), (1, 10**8)])
def test_the_ends_of_a_range_must_be_values_of_the_setting(ends: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"train\.epochs"):
        check_space([Parameter(setting="train.epochs", low=ends[0], high=ends[1])], tiny())


def test_batches_larger_than_the_data_set_are_left_out() -> None:
    batch = Parameter(setting="train.batch_size", choices=(16, 64, 256))
    other = Parameter(setting="optim.lr", low=0.1, high=1.0)
    assert fitting([batch, other], 256) == [batch, other]
    assert [parameter.choices for parameter in fitting([batch, other], 100)] == [(16, 64), ()]
    assert fitting([batch, other], 10) == [other]  # the batch keeps its size


def test_settings_of_other_methods_are_not_searched() -> None:
    said: list[str] = []

    class Watch(Observer):
        def say(self, text: str) -> None:
            said.append(text)

    temperature, rate = (Parameter(setting=name, low=0.1, high=1.0) for name in ("loss.temperature", "optim.lr"))
    assert used([temperature, rate], tiny(), Watch()) == [temperature, rate]
    assert used([temperature, rate], tiny(method="moco"), Watch()) == [rate]
    assert said == ["not searched, because method 'moco' doesn't use it: loss.temperature"]
