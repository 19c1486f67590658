"""From what a person asks for to a Config: the order of precedence, --drop, and the presets."""

import shlex

import pytest
import torch
import typer

from cli import app
from experiments.configs import presets as recipes
from experiments.configs import resolve as configure
from experiments.configs.presets import Preset, presets
from experiments.configs.resolve import FLAGS, resolve, resolve_timed
from simclr.augment import AUGMENTATIONS
from simclr.config import Config
from simclr.errors import UserError
from simclr.settings import settings
from simclr.train import budget


def refusal(**asked):
    """The one-line message with which something is refused."""
    with pytest.raises(UserError) as caught:
        resolve(**asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """A preset of known content, named `tiny`."""
    path = tmp_path / "tiny.toml"
    path.write_text("[train]\nepochs = 11\nbatch_size = 12\n[loss]\ntemperature = 0.13\n[optim]\nlr = 0.14\n")
    monkeypatch.setattr(configure, "presets", lambda: {"tiny": Preset("tiny", path, {})})
    return "tiny"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatch_size = 22\n[loss]\ntemperature = 0.23\n[optim]\nlr = 0.24\n")
    return path


def test_a_flag_beats_a_setting_beats_the_file_beats_the_preset(preset, file):
    config = resolve(preset, file, ["loss.temperature=0.33", "optim.lr=0.34"], lr=0.44)
    assert config.train.epochs == 11
    assert config.train.batch_size == 22
    assert config.loss.temperature == 0.33
    assert config.optim.lr == 0.44
    assert config.optim.momentum == Config().optim.momentum  # set by nobody


def test_a_later_setting_beats_an_earlier_one(preset):
    assert resolve(preset, None, ["seed=1", "seed=2"]).seed == 2


def test_flags_that_were_not_given_change_nothing(preset):
    assert resolve(preset, **dict.fromkeys(FLAGS)) == resolve(preset)


def test_the_name_comes_from_the_preset_the_file_or_the_flag(preset, file, tmp_path):
    named = tmp_path / "other.toml"
    named.write_text('name = "in the file"')
    assert resolve(preset).name == "tiny"
    assert resolve(preset, file).name == "mine"
    assert resolve(preset, named).name == "in the file"
    assert resolve(preset, named, ["name=set"]).name == "set"
    assert resolve(preset, named, ["name=set"], name="flag").name == "flag"


def test_nothing_asked_for_is_the_shapes_preset():
    assert resolve() == resolve("shapes")
    assert resolve().data.dataset == "shapes"


def test_a_file_alone_starts_from_the_defaults_and_not_from_a_preset(tmp_path):
    path = tmp_path / "bare.toml"
    path.write_text("seed = 5")
    assert resolve(config=path) == Config(name="bare", seed=5)


def test_every_flag_stands_for_a_setting():
    assert set(FLAGS.values()) <= set(settings(Config)) | {"time.hours"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataset", "digits"),
        ("data_dir", "/photos"),
        ("on_bad_image", "skip"),
        ("backbone", "resnet34"),
        ("head", "linear"),
        ("temperature", 0.25),
        ("lr", 0.125),
        ("epochs", 3),
        ("batch_size", 32),
        ("precision", "fp32"),
        ("seed", 9),
        ("device", "cpu"),
        ("name", "mine"),
    ],
)
def test_a_flag_sets_its_setting(flag, value):
    assert resolve(**{flag: value}).flat()[FLAGS[flag]] == value


def test_a_flag_of_zero_or_false_counts_as_given():
    assert resolve(settings=["seed=4"], seed=0).seed == 0


# --- --set ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("loss.temperature=0.2", "loss.temperature", 0.2),
        ("loss.normalize=false", "loss.normalize", False),
        ("augment.crop.scale=[0.3, 0.5]", "augment.crop.scale", [0.3, 0.5]),
        ("model.head=linear", "model.head", "linear"),
        ('model.head="linear"', "model.head", "linear"),
        (" train.epochs = 7 ", "train.epochs", 7),
        ("name=a = b", "name", "a = b"),
        ("data.dir=/my photos/x", "data.dir", "/my photos/x"),
    ],
)
def test_a_setting_is_toml_or_else_a_plain_string(text, setting, value):
    assert resolve(settings=[text]).flat()[setting] == value


@pytest.mark.parametrize("text", ["loss.temperature", "=3", " = 3", ""])
def test_text_that_is_not_a_setting_is_refused_with_an_example(text):
    message = refusal(settings=[text])
    assert f"'{text}'" in message
    assert "section.key=value" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("loss.temprature=1", "did you mean 'loss.temperature'?"),
        ("loss..temperature=1", "unknown setting 'loss."),
        ("loss.temperature=", "loss.temperature"),
        ("loss.temperature=warm", 'loss.temperature = "warm"'),
        ("loss=3", "loss = 3"),
        ("seed.x=3", "seed"),
        ("data.dataset=cifar", "did you mean 'cifar10'?"),
    ],
)
def test_a_setting_that_is_not_valid_is_refused(text, part):
    assert part in refusal(settings=[text])


# --- --drop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_drop_leaves_an_augmentation_out_of_both_views(name, tmp_path):
    path = tmp_path / "c.toml"
    both = "\n".join(f"[{view}.{name}]\np = 1.0" for view in ("augment", "augment2"))
    path.write_text(both + f"\n[augment2.{'blur' if name != 'blur' else 'noise'}]\np = 0.5")
    full, without = resolve(config=path), resolve(config=path, dropped=[name])
    assert all(name in view for view in full.pipelines())
    for before, after in zip(full.pipelines(), without.pipelines(), strict=True):
        assert list(after) == [other for other in before if other != name]
        assert all(after[other] == before[other] for other in after)


def test_drop_does_not_give_the_second_view_a_table_of_its_own():
    assert resolve(config=None, dropped=["flip"]).augment2 is None


def test_drop_beats_every_other_source(preset):
    config = resolve(preset, None, ["augment.blur.p=1.0", "augment2.blur.p=1.0"], dropped=["blur", "flip"])
    assert not {"blur", "flip"} & {name for view in config.pipelines() for name in view}


def test_an_unknown_augmentation_is_refused_with_the_nearest_name():
    message = refusal(dropped=["colour_jitter"])
    assert "unknown augmentation 'colour_jitter'" in message
    assert "did you mean 'color_jitter'?" in message


# --- files and presets ------------------------------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    assert "unknown preset 'shape': did you mean 'shapes'?" in refusal(preset="shape")


@pytest.mark.parametrize("content", [b"[train\nepochs = 1", b"epochs = ", b"a = 1\na = 2", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert f"{path} is not a TOML file" in refusal(config=path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    assert str(tmp_path / "none.toml") in refusal(config=tmp_path / "none.toml")
    assert str(tmp_path) in refusal(config=tmp_path)


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_name(tmp_path):
    path = tmp_path / "typo.toml"
    path.write_text("[optim]\nlearning_rate = 0.1\nmomentun = 0.9")
    assert "optim." in refusal(config=path)


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_valid_config_with_command_cost_and_result_in_its_header(name):
    row = presets()[name]
    config, _ = resolve_timed(name)
    assert config.name == name
    assert config != Config(name=name)  # it sets something
    header = {key.lower(): text for key, text in row.header.items()}
    assert {"about", "command", "cost", "result"} <= set(header)
    assert all(header.values())
    program, command, *options = shlex.split(header["command"])
    assert program == "simclr"
    typer.main.get_command(app).commands[command].make_context(command, options)  # type: ignore[attr-defined]
    assert f"--preset {name}" in header["command"]


STORED = {"cifar10": 60_000, "tiny-imagenet": 110_000, "folder": 1_281_167}  # images


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in presets().items() if "(predicted" in row.header["Cost"]])
def test_the_memory_in_a_header_is_what_the_planner_says(name):
    config, _ = resolve_timed(name)
    plan = budget.plan_memory(config, STORED[config.data.dataset], budget.budget(None, torch.device("cpu")))
    assert presets()[name].header["Cost"].startswith(f"{plan.peak / 2**30:.1f} GiB")


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Presets that build on each other."""
    texts = {
        "base": "[train]\nepochs = 11\nbatch_size = 12\n[augment2.blur]\np = 0.5\n",
        "child": 'preset = "base"\n[train]\nepochs = 21\n',
        "timed": 'preset = "child"\ntime = {hours = 1, choices = [{epochs = 2, set = {seed = 3}}]}\n',
        "longer": 'preset = "timed"\n[time]\nhours = 8\n',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.setattr(configure, "presets", lambda: {n: Preset(n, tmp_path / f"{n}.toml", {}) for n in texts})
    return tmp_path


def test_a_preset_builds_on_another(family):
    config = resolve("child")
    assert (config.name, config.train.epochs, config.train.batch_size) == ("child", 21, 12)
    assert config.augment2.blur.p == 0.5
    (family / "mine.toml").write_text('preset = "child"\n[train]\nbatch_size = 22\n')
    config = resolve(config=family / "mine.toml")
    assert (config.name, config.train.epochs, config.train.batch_size) == ("mine", 21, 22)
    assert resolve("base", family / "mine.toml").train.epochs == 21  # the file, and what it builds on, over --preset
    (family / "mine.toml").write_text('preset = "chidl"')
    assert "unknown preset 'chidl': did you mean 'child'?" in refusal(config=family / "mine.toml")


def test_a_preset_that_goes_by_the_clock_is_no_config_yet(family):
    config, time = resolve_timed("longer")
    assert (time.hours, time.choices[0].epochs, time.choices[0].set) == (8, 2, {"seed": 3})
    assert config.train.epochs == 21
    assert resolve_timed("longer", settings=["time.hours=2"])[1].hours == 2
    assert resolve_timed("child")[1] is None
    assert "goes by the clock" in refusal(preset="longer")
    with pytest.raises(UserError, match=r"time.hours = -1: expected greater than 0"):
        resolve_timed("longer", settings=["time.hours=-1"])
    with pytest.raises(UserError, match=r"goes by the clock, which chooses the epochs: leave --epochs out"):
        resolve_timed("child", hours=1, epochs=1)
    any_preset, time = resolve_timed("child", hours=2)
    assert (any_preset.name, time.hours, time.choices) == ("child-hours=2", 2, (configure.Choice(epochs=1, set={}),))
    with pytest.raises(UserError, match=r"unknown setting 'time.hour': did you mean 'time.hours'"):
        resolve_timed("longer", settings=["time.hour=1"])


def test_what_is_set_is_not_chosen_by_the_clock(family):
    def choices(**asked):
        return [choice.set for choice in resolve_timed(**asked)[1].choices]

    assert choices(preset="longer") == [{"seed": 3}]
    assert choices(preset="longer", seed=5) == choices(preset="longer", settings=["seed=5"]) == [{}]
    (family / "mine.toml").write_text('preset = "longer"\nseed = 5\n')
    assert choices(config=family / "mine.toml") == [{}]
    (family / "mine.toml").write_text("seed = 5\ntime = {hours = 1, choices = [{set = {seed = 6}}]}\n")
    assert choices(config=family / "mine.toml") == [{"seed": 6}]


def test_a_header_line_without_a_key_goes_on_with_the_one_before(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("# About: one\n#   and more\n# Cost: 1 h\n\n# Result: not in the header\n[loss]\n")
    assert recipes._header(path) == {"About": "one and more", "Cost": "1 h"}
