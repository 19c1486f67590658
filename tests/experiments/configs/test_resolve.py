"""From what a user asks for to a Config: precedence, --set, --drop, and presets that build on others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.configs import resolve as resolving
from experiments.configs.presets import Preset
from experiments.configs.resolve import FLAGS, Choice, changed, preset_on, resolve, resolve_timed, short_name
from simclr.augment import AUGMENTATIONS
from simclr.config import Config
from simclr.errors import UserError
from simclr.methods import METHODS
from simclr.settings import setting_names
from tests.helpers import tiny


def error_of(**asked: Any) -> str:
    """The message of the error that a request raises. It has one line."""
    with pytest.raises(UserError) as caught:
        resolve(**asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a preset that sets a few things."""
    path = tmp_path / "tiny.toml"
    path.write_text("[train]\nepochs = 11\nbatch_size = 12\n[loss]\ntemperature = 0.13\n[optim]\nlr = 0.14\n")
    monkeypatch.setattr(resolving, "presets", lambda: {"tiny": Preset("tiny", path, {})})
    return "tiny"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatch_size = 22\n[loss]\ntemperature = 0.23\n[optim]\nlr = 0.24\n")
    return path


def test_flags_and_settings_override_the_file_overrides_the_preset(preset: str, file: Path) -> None:
    config = resolve(preset, file, ["loss.temperature=0.33"], lr=0.44)
    assert config.train.epochs == 11
    assert config.train.batch_size == 22
    assert config.loss.temperature == 0.33
    assert config.optim.lr == 0.44
    assert config.optim.momentum == Config().optim.momentum  # nobody sets it


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        (["seed=1", "seed=2"], {}, "--set seed=1 and --set seed=2 give seed two"),
        (["loss.temperature=0.5"], {"temperature": 0.1}, "=0.5 and --temperature 0.1 give loss.temperature two"),
        (["loss={temperature=0.5}"], {"temperature": 0.1}, "=0.5} and --temperature 0.1 give loss.temperature two"),
        (["train.batch_size=8"], {"batch_size": 16}, "=8 and --batch-size 16 give train.batch_size two"),
    ],
)
def test_two_different_values_of_one_setting_are_refused(
    preset: str, settings: list[str], flags: dict[str, float], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(preset, None, settings, **flags)


def test_equal_values_of_one_setting_are_fine(preset: str) -> None:
    settings = ["loss={temperature=0.3}", "loss.temperature=0.30"]
    assert resolve(preset, None, settings, temperature=0.3).loss.temperature == 0.3


def test_flags_that_are_none_change_nothing(preset: str) -> None:
    assert resolve(preset, **dict.fromkeys(FLAGS)) == resolve(preset)


def test_the_name_comes_from_the_preset_the_file_or_the_flag(preset: str, file: Path, tmp_path: Path) -> None:
    named = tmp_path / "other.toml"
    named.write_text('name = "in the file"')
    assert resolve(preset).name == "tiny"
    assert resolve(preset, file).name == "mine"
    assert resolve(preset, named).name == "in the file"
    assert resolve(preset, named, ["name=set"]).name == "set"
    assert resolve(preset, named, name="flag").name == "flag"


def test_the_default_is_the_shapes_preset() -> None:
    assert resolve() == resolve("shapes")
    assert resolve().data.dataset == "shapes"


def test_a_file_alone_builds_on_no_preset(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text("seed = 5")
    assert resolve(config=path) == Config(name="bare", seed=5)


def test_every_flag_sets_an_existing_setting() -> None:
    assert set(FLAGS.values()) <= set(setting_names(Config)) | {"time.hours"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataset", "digits"),
        ("data_dir", "/photos"),
        ("on_bad_image", "skip"),
        ("on_bad_image", 0.5),
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
def test_a_flag_sets_its_setting(flag: str, value: object) -> None:
    assert resolve(**{flag: value}).flat()[FLAGS[flag]] == value


def test_a_flag_of_zero_counts_as_given(preset: str, tmp_path: Path) -> None:
    file = tmp_path / "four.toml"
    file.write_text("seed = 4")
    assert resolve(preset, file, seed=0).seed == 0


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
def test_a_value_is_toml_or_a_plain_string(text: str, setting: str, value: object) -> None:
    assert resolve(settings=[text]).flat()[setting] == value


@pytest.mark.parametrize("text", ["loss.temperature", "=3", " = 3", ""])
def test_text_that_is_not_a_setting_is_refused_with_an_example(text: str) -> None:
    message = error_of(settings=[text])
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
def test_an_invalid_setting_is_refused(text: str, part: str) -> None:
    assert part in error_of(settings=[text])


# --- --drop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_drop_removes_an_augmentation_from_both_views(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    both = "\n".join(f"[{view}.{name}]\np = 1.0" for view in ("augment", "augment2"))
    path.write_text(both + f"\n[augment2.{'blur' if name != 'blur' else 'noise'}]\np = 0.5")
    full, without = resolve(config=path), resolve(config=path, dropped=[name])
    assert all(name in view for view in full.pipelines())
    for before, after in zip(full.pipelines(), without.pipelines(), strict=True):
        assert list(after) == [other for other in before if other != name]
        assert all(after[other] == before[other] for other in after)


def test_drop_leaves_the_second_view_equal_to_the_first() -> None:
    assert resolve(config=None, dropped=["flip"]).augment2 is None


def test_drop_overrides_everything_else(preset: str) -> None:
    config = resolve(preset, None, ["augment.blur.p=1.0", "augment2.blur.p=1.0"], dropped=["blur", "flip"])
    assert not {"blur", "flip"} & {name for view in config.pipelines() for name in view}


def test_an_unknown_augmentation_is_refused_with_the_nearest_name() -> None:
    message = error_of(dropped=["colour_jitter"])
    assert "unknown augmentation 'colour_jitter'" in message
    assert "did you mean 'color_jitter'?" in message


# --- files and presets ------------------------------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    assert "unknown preset 'shape': did you mean 'shapes'?" in error_of(preset="shape")


@pytest.mark.parametrize("content", [b"[train\nepochs = 1", b"epochs = ", b"a = 1\na = 2", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert f"{path} is not a TOML file" in error_of(config=path)


def test_a_table_of_labels_is_used_although_the_file_has_none(tmp_path: Path) -> None:
    path, labels = tmp_path / "photos.toml", tmp_path / "labels.csv"
    path.write_text("data = {dataset = 'folder', dir = '/photos', unlabelled = true}")
    assert not resolve(config=path, labels=labels).data.unlabelled
    assert resolve(config=path, labels=labels, unlabelled=True).data.unlabelled
    path.write_text("data = {dataset = 'folder', dir = '/photos', unlabelled = true, labels = '/groups.csv'}")
    assert resolve(config=path, labels=labels).data.unlabelled  # the same table of groups, in another place


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in error_of(config=tmp_path / "none.toml")
    assert str(tmp_path) in error_of(config=tmp_path)


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text("[optim]\nlearning_rate = 0.1\nmomentun = 0.9")
    message = error_of(config=path)
    assert message.startswith(f"{path}: unknown setting 'optim.learning_rate'")
    assert "; unknown setting 'optim.momentun': did you mean 'optim.momentum'?" in message
    path.write_text("")
    assert error_of(settings=["optim.momentun=1"], config=path).startswith("unknown setting")  # it isn't in the file


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Presets that build on each other."""
    texts = {
        "base": "[train]\nepochs = 11\nbatch_size = 12\n[augment2.blur]\np = 0.5\n",
        "child": 'preset = "base"\n[train]\nepochs = 21\n',
        "timed": 'preset = "child"\ntime = {hours = 1, choices = [{epochs = 2, set = {seed = 3}}]}\n',
        "longer": 'preset = "timed"\n[time]\nhours = 8\n',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.setattr(resolving, "presets", lambda: {n: Preset(n, tmp_path / f"{n}.toml", {}) for n in texts})
    return tmp_path


def test_a_preset_builds_on_another(family: Path) -> None:
    config = resolve("child")
    assert (config.name, config.train.epochs, config.train.batch_size) == ("child", 21, 12)
    assert config.augment2.blur.p == 0.5
    (family / "mine.toml").write_text('preset = "child"\n[train]\nbatch_size = 22\n')
    config = resolve(config=family / "mine.toml")
    assert (config.name, config.train.epochs, config.train.batch_size) == ("mine", 21, 22)
    assert resolve("base", family / "mine.toml").train.epochs == 21  # the file's own preset overrides --preset
    (family / "mine.toml").write_text('preset = "chidl"')
    assert "unknown preset 'chidl': did you mean 'child'?" in error_of(config=family / "mine.toml")


def test_a_preset_with_a_time_budget_is_resolved_with_it(family: Path) -> None:
    config, time = resolve_timed("longer")
    assert (time.hours, time.choices[0].epochs, time.choices[0].set) == (8, 2, {"seed": 3})
    assert config.train.epochs == 21
    assert resolve_timed("longer", settings=["time.hours=2"])[1].hours == 2
    assert resolve_timed("child")[1] is None
    assert "longer has a time budget, which only `simclr pretrain` supports" in error_of(preset="longer")
    with pytest.raises(UserError, match="preset 'longer' has a time budget"):
        preset_on("longer", tiny())
    with pytest.raises(UserError, match=r"time.hours = -1: expected more than 0"):
        resolve_timed("longer", settings=["time.hours=-1"])
    with pytest.raises(
        UserError, match=r"^--hours sets a time budget.*leave out --epochs \(train.epochs\), or leave out --hours$"
    ):
        resolve_timed("child", hours=1, epochs=1)
    config, time = resolve_timed("child", hours=2)
    assert (config.name, time.hours, time.choices) == ("child-hours=2", 2, (Choice(epochs=1, set={}),))
    with pytest.raises(UserError, match=r"unknown setting 'time.hour': did you mean 'time.hours'"):
        resolve_timed("longer", settings=["time.hour=1"])


def test_settings_of_the_user_override_those_of_a_choice(family: Path) -> None:
    def choices(**asked: Any) -> list[dict[str, Any]]:
        return [choice.set for choice in resolve_timed(**asked)[1].choices]

    assert choices(preset="longer") == [{"seed": 3}]
    assert choices(preset="longer", seed=5) == choices(preset="longer", settings=["seed=5"]) == [{}]
    (family / "mine.toml").write_text('preset = "longer"\nseed = 5\n')
    assert choices(config=family / "mine.toml") == [{}]
    (family / "mine.toml").write_text("seed = 5\ntime = {hours = 1, choices = [{set = {seed = 6}}]}\n")
    assert choices(config=family / "mine.toml") == [{"seed": 6}]


# --- settings and their names -----------------------------------------------------------------------------------------


def test_a_short_name_belongs_to_one_setting() -> None:
    names = setting_names(Config)
    short = {short_name(name) for name in names}
    assert len(short) == len(names)
    assert {"temperature", "blur.p", "augment2.blur.p", "seed"} <= short


def test_a_change_of_the_first_view_changes_the_second_where_both_are_equal() -> None:
    config = tiny(augment={"blur": {"p": 0.5}, "flip": {"p": 0.5}}, augment2={"flip": {"p": 0.1}})
    both = changed(config, {"augment.blur.p": 0.2, "augment.flip.p": 0.3})
    first, second = both.model_dump()["augment"], both.model_dump()["augment2"]
    assert (first["blur"]["p"], second["blur"]["p"]) == (0.2, 0.2)
    assert (first["flip"]["p"], second["flip"]["p"]) == (0.3, 0.1)
    apart = changed(config, {"augment.blur.p": 0.2, "augment2.blur.p": 0.9}).model_dump()
    assert (apart["augment"]["blur"]["p"], apart["augment2"]["blur"]["p"]) == (0.2, 0.9)
    with pytest.raises(UserError, match=r"optim\.lr = -1"):
        changed(config, {"optim.lr": -1})


def test_a_preset_on_a_config_keeps_its_images_seed_and_precision() -> None:
    config = tiny(seed=7)
    preset = preset_on("cifar10-cpu", config)
    assert (preset.data.dataset, preset.seed, preset.name, preset.device) == ("digits", 7, "tiny", "cpu")
    assert (preset.train.precision, preset.optim.name) == ("fp32", "muon")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", " ", "x" * 251, "caf\udce9"])
def test_a_new_name_is_short_and_not_a_path(name: str) -> None:
    assert error_of(name=name).startswith("name = ")


def test_a_stored_config_may_have_a_name_that_is_not_new(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("name = 'a/b'")
    assert resolve(config=tmp_path / "a.toml").name == "a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3", "name = 3"),
        ("[name]\na = 1", "name = "),
        ("preset = 3", "unknown preset '3'"),
        ("[preset]\na = 1", "unknown preset"),
        ("preset = ['shapes']", "unknown preset"),
        ("loss = 3", "loss "),
        ("augment = [1]", "augment "),
        ("augment2 = 5", "augment2 "),
        ("[optim.lr]\na = 1", 'optim.lr = {"a": 1}'),
        ("time = 3", "time = 3"),
        ("time.hours = 1\ntime.choices = 3", "time.choices = 3"),
        ("time.hours = 1\ntime.choices = [3]", "time.choices = 3"),
        ("time.hours = 1\ntime.choices = [{set = 3}]", "time.choices.set = 3: expected a table of settings"),
        ("time.hours = 1\ntime.choices = [{set = {'optim.rl' = 1}}]", "unknown setting 'optim.rl'"),
        ("time.hours = 1\ntime.choices = [{set = {'optim.lr' = true}}, {}]", "optim.lr = true"),
        ("time.hours = nan", "nan can't be the value"),
        ("time.hours = 1e9", "time.hours = 1000000000.0"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"dropped": ["flip"], "settings": ["loss.temperature=0.1"]}])
def test_a_table_where_a_value_belongs_and_the_reverse_are_refused(
    text: str, message: str, more: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve_timed(config=tmp_path / "a.toml", **more)
    assert message in str(caught.value)


def test_methods_do_not_change_the_names_of_other_settings() -> None:
    assert short_name("loss.temperature") == "temperature"
    sections = {method.section_name for method in METHODS.values()} - {"loss"}
    for path in setting_names(Config):
        if path.partition(".")[0] in sections:
            assert short_name(path) == path


def test_settings_of_another_method_are_refused() -> None:
    assert error_of(method="moco", temperature=0.1) == (
        "loss.temperature has no effect with method 'moco': set moco.temperature instead, or choose another --method"
    )
    assert error_of(settings=["moco.queue=64"]) == (
        "moco.queue has no effect with method 'simclr': leave it out, or choose another --method"
    )
    assert resolve(settings=["method=moco", "moco.temperature=0.1"]).moco.temperature == 0.1
    assert resolve(method="moco").name == "shapes-method=moco"
