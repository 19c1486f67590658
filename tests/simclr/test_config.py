"""The Config: what is rejected and how, the round trip through TOML, and what the key of a run depends on."""

import importlib.util
import sys
import tomllib
from functools import reduce

import pytest
from pydantic import ValidationError

import simclr.config
from experiments.configs.presets import presets
from experiments.configs.resolve import resolve_timed
from simclr import device as devices
from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make, to_toml
from simclr.data.dataset import NORMALIZATIONS
from simclr.data.sources import DATASETS
from simclr.errors import UserError
from simclr.methods import METHODS
from simclr.methods.base import Method
from simclr.model import HEADS, STEMS
from simclr.optim import LR_SCALINGS, OPTIMIZERS, SCHEDULES
from simclr.settings import Section, merge, nested, setting_names


def tables(values):
    """Nested tables from dotted names, e.g. {"loss.temperature": 0.1}."""
    return reduce(merge, (nested(name, value) for name, value in values.items()), {})


def configured(values):
    """A Config from dotted names."""
    return make(tables(values))


def error_message(values):
    """The one-line message with which a Config is rejected."""
    with pytest.raises(UserError) as caught:
        configured(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- values -----------------------------------------------------------------------------------------------------------


def test_no_settings_give_the_default_config():
    assert make({}) == Config()
    assert make(Config().model_dump()) == Config()


@pytest.mark.parametrize(("section", "field"), [(None, "seed"), ("loss", "temperature"), ("augment", "crop")])
def test_a_config_is_frozen(section, field):
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(config, section) if section else config, field, 2)
    assert config == Config()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("loss.temprature", "loss.temperature"),
        ("temperature", "loss.temperature"),
        ("augment.blurr", "augment.blur.p"),
        ("augment2.crop.scal", "augment2.crop.scale"),
        ("sede", "seed"),
        ("optim.weight-decay", "optim.weight_decay"),
    ],
)
def test_the_nearest_setting_is_suggested_for_an_unknown_one(name, nearest):
    message = error_message({name: 1})
    assert f"unknown setting '{name}'" in message
    assert message.endswith(f"did you mean '{nearest}'?")  # without listing all settings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("loss.temperature", 0, "at least 0.01"),
        ("loss.temperature", 1e6, "at most 1000"),
        ("train.batch_size", 1, "at least 2"),
        ("train.batch_size", 2.5, "integer"),
        ("train.epochs", 0, "at least 1"),
        ("data.val_fraction", -0.1, "at least 0"),
        ("data.group", "(", "regular expression"),
        ("data.val_fraction", 1, "less than 1"),
        ("data.limit", 1, "at least 2"),
        ("data.side", 7, "at least 8"),
        ("data.on_bad_image", "ignore", "expected error, skip or a share"),
        ("data.background", "whitish", "color"),
        ("data.range", [5.0, 5.0], "low < high"),
        ("data.range", "all", "auto, or [low, high]"),
        ("data.check", "off", "'error' or 'report'"),
        ("augment.blur.p", 1.5, "at most 1"),
        ("augment2.flip.p", -0.1, "at least 0"),
        ("augment.crop.scale", [0.5, 0.2], "must not exceed"),
        ("augment.color_jitter", {"hue": 0.6}, "must not exceed 0.5"),
        ("augment.crop", {"p": 0.5, "size": 16}, "set p = 1"),
        ("optim.lr", 0, "more than 0"),
        ("optim.lr", float("inf"), "finite"),
        ("optim.momentum", 1, "less than 1"),
        ("train.views", "both", "'fused' or 'split'"),
        ("train.precision", "fp8", "'fp32'"),
        ("optim.betas", [0.9, 5.0], "less than 1"),
        ("optim.weight_decay", float("inf"), "finite"),
        ("augment.color_jitter", {"hue": 0.0, "strength": float("inf")}, "finite"),
        ("seed", -1, "at least 0"),
        ("loss", 3, "a section"),
    ],
)
def test_bad_values_are_rejected_with_name_and_expectation(name, value, expected):
    message = error_message({name: value})
    assert message.startswith(name)
    assert expected in message
    if isinstance(value, int | str):
        assert f"{name} = {value} " in message.replace('"', "").replace(":", " ")


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("data.dataset", "cifar", "cifar10"),
        ("data.dataset", "tiny_imagenet", "tiny-imagenet"),
        ("method", "simcrl", "simclr"),
        ("data.normalize", "datset", "dataset"),
        ("model.backbone", "resnet19", "resnet18"),
        ("model.stem", "cifr", "cifar"),
        ("model.head", "mpl", "mlp"),
        ("optim.name", "adam", "adamw"),
        ("optim.schedule", "cosin", "cosine"),
        ("optim.lr_scaling", "lin", "linear"),
    ],
)
def test_the_nearest_choice_is_suggested_for_an_unknown_one(name, value, nearest):
    message = error_message({name: value})
    assert f"'{value}'" in message
    assert f"did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("method", METHODS),
        ("data.dataset", DATASETS),
        ("data.normalize", NORMALIZATIONS),
        ("model.stem", STEMS),
        ("model.head", HEADS),
        ("optim.name", OPTIMIZERS),
        ("optim.schedule", SCHEDULES),
        ("optim.lr_scaling", LR_SCALINGS),
    ],
)
def test_every_name_in_a_table_can_be_chosen_and_has_its_own_key(name, table):
    keys = {configured({name: choice, "train.batch_size": 512}).key() for choice in table}
    assert len(keys) == len(table)


# --- views ------------------------------------------------------------------------------------------------------------


def test_the_second_view_equals_the_first_unless_it_has_its_own_table():
    first, second = configured({"augment.blur.p": 0.3}).pipelines()
    assert first == second
    first, second = configured({"augment.blur.p": 1.0, "augment2.blur.p": 0.1}).pipelines()
    assert (first["blur"].p, second["blur"].p) == (1.0, 0.1)


def test_more_views_take_turns_and_two_are_the_default():
    values = {"augment.views": 5, "augment.blur.p": 1.0, "augment2.blur.p": 0.1}
    assert [view["blur"].p for view in configured(values).pipelines()] == [1.0, 0.1, 1.0, 0.1, 1.0]
    assert configured({"augment.views": 2}).key() == Config().key()
    assert "views" not in to_toml(Config()).partition("[augment]")[2].partition("[model]")[0]
    assert "'augment2.views'" in error_message({"augment2.views": 3})


def test_local_crops_are_not_taken_for_views_by_the_key():
    scale = [0.2, 1.0]
    views = {"augment.crop.size": 16, "augment.crop.scale": scale}
    local = {"augment.local.count": 2, "augment.local.size": 16, "augment.local.scale": scale}
    assert configured(views | local).key() != configured(views | {"augment.views": 4}).key()


def test_flat_has_all_settings_of_absent_augmentations():
    flat = configured({"augment.blur.p": 0.0, "augment.blur.kernel": 0.2}).flat()
    blur = {name: flat[name] for name in flat if name.startswith("augment.blur")}
    assert blur == {"augment.blur.p": 0.0, "augment.blur.kernel": 0.2, "augment.blur.sigma": [0.1, 2.0]}
    assert set(flat) <= set(setting_names(Config))
    # Older records should not seem to differ.
    later = {"method", "data.background", "data.range", "data.check", "train.keep_every", "train.compile"}
    assert later.isdisjoint(flat)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("shapes", "shapes-s7"),
        ("no-blur@shapes", "no-blur-s7@shapes"),
        ("lr=1@no-blur@shapes", "lr=1-s7@no-blur@shapes"),
    ],
)
def test_a_run_is_named_after_the_difference_the_seed_and_the_start(name, run):
    assert configured({"name": name, "seed": 7}).run_name() == run


# --- TOML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": 'quotes " and \\ back slashes', "seed": 7},
        {"name": "déjà vu"},
        {"data.dir": "/data/\N{GRINNING FACE}\n\t\x7f\x1b/my photos", "data.side": 48, "data.limit": 100},
        {"augment2.solarize.p": 0.2, "augment.crop.size": 16},
        {"augment2": {}},
        {"optim.name": "adamw", "optim.betas": [0.5, 0.75], "optim.weight_decay": 1e-12, "optim.lr": 1e22},
        {"model.head": "none", "model.hidden_dim": 64, "model.width": 0.25, "loss.normalize": False},
    ],
)
def test_toml_reads_back_as_an_equal_config(values):
    config = configured(values)
    assert make(tomllib.loads(to_toml(config))) == config


def test_toml_of_simclr_names_no_method_because_older_versions_know_none():
    assert "method" not in to_toml(make({}))


def test_the_toml_of_every_preset_reads_back_as_an_equal_config():
    for name in presets():
        config, _ = resolve_timed(name)
        assert make(tomllib.loads(to_toml(config))) == config


# --- the key ----------------------------------------------------------------------------------------------------------

# A value other than the default for every setting that changes the result. CONTEXT makes the config use it.
MATTERS = {
    "seed": 1,
    "init": "weights.pth@0123456789abcdef",
    "data.dataset": "digits",
    "data.side": 48,
    "data.val_fraction": 0.2,
    "data.image_column": "x",
    "data.label_column": "y",
    "data.limit": 100,
    "data.split_column": "set",
    "data.split_seed": 1,
    "data.normalize": "half",
    "data.unlabelled": True,
    "data.group": "[a-z]+",
    "data.test_from": "val",
    "model.backbone": "resnet34",
    "model.stem": "imagenet",
    "model.width": 0.5,
    "model.head": "linear",
    "model.hidden_dim": 64,
    "model.out_dim": 64,
    "model.head_batch_norm": True,
    "loss.temperature": 0.1,
    "loss.normalize": False,
    "loss.include_self": True,
    "optim.name": "sgd",
    "optim.lr": 0.2,
    "optim.lr_scaling": "sqrt",
    "optim.weight_decay": 1e-4,
    "optim.decay_bias_and_norm": True,
    "optim.momentum": 0.8,
    "optim.trust": 0.1,
    "optim.decay_in_norm": True,
    "optim.betas": [0.8, 0.99],
    "optim.schedule": "constant",
    "optim.warmup_epochs": 5,
    "optim.plateau_factor": 0.5,
    "optim.plateau_patience": 3,
    "train.epochs": 50,
    "train.batch_size": 128,
    "train.norm_batch": 64,
    "train.views": "split",
    "train.ema": 0.99,
    "train.compile": True,
    "train.precision": "fp16",  # what auto never stands for on a CPU
}
MATTERS |= {"augment.views": 3, "augment.local.count": 2, "augment.local.size": 12, "augment.local.scale": [0.2, 0.4]}
for _view in ("augment", "augment2"):
    MATTERS |= {
        f"{_view}.crop.p": 0.5,
        f"{_view}.crop.scale": [0.2, 0.9],
        f"{_view}.crop.ratio": [0.5, 2.0],
        f"{_view}.crop.size": 16,
        f"{_view}.shared_crop.p": 0.25,
        f"{_view}.shared_crop.scale": [0.2, 0.9],
        f"{_view}.shared_crop.ratio": [0.5, 2.0],
        f"{_view}.flip.p": 0.25,
        f"{_view}.rotation.p": 0.25,
        f"{_view}.rotation.degrees": 45.0,
        f"{_view}.quarter_turn.p": 0.25,
        f"{_view}.auto_augment.p": 0.25,
        f"{_view}.auto_augment.policy": "cifar10",
        f"{_view}.color_jitter.p": 0.25,
        f"{_view}.color_jitter.strength": 0.5,
        f"{_view}.color_jitter.brightness": 0.5,
        f"{_view}.color_jitter.contrast": 0.5,
        f"{_view}.color_jitter.saturation": 0.5,
        f"{_view}.color_jitter.hue": 0.1,
        f"{_view}.grayscale.p": 0.25,
        f"{_view}.blur.p": 0.25,
        f"{_view}.blur.kernel": 0.2,
        f"{_view}.blur.sigma": [0.5, 1.0],
        f"{_view}.solarize.p": 0.25,
        f"{_view}.solarize.threshold": 0.25,
        f"{_view}.sobel.p": 0.25,
        f"{_view}.noise.p": 0.25,
        f"{_view}.noise.sigma": 0.2,
        f"{_view}.cutout.p": 0.25,
        f"{_view}.cutout.scale": [0.1, 0.2],
        f"{_view}.cutout.ratio": [0.5, 2.0],
    }

# A value other than the default for every setting that does not change the result.
IGNORED = {
    "name": "another",
    "device": "cpu",
    "memory": "4GiB",
    "threads": 2,
    "data.dir": "/somewhere/else",
    "data.labels": "/somewhere/else.csv",
    "data.on_bad_image": "skip",
    "data.background": "black",  # the digest of the images shows what this and the next setting change
    "data.range": [0.0, 4095.0],
    "data.check": "report",
    "train.knn_every": 0,
    "train.micro_batch": 256,
    "train.checkpoint_minutes": 1.0,
    "train.keep_every": 5,
}

# Settings that must equal another setting, which matters.
FOLLOWS = {"augment2.crop.size": 24}
for _name in FOLLOWS:
    del MATTERS[_name]

# Settings that make the config use a setting that it ignores by default.
CONTEXT = {
    **{f"augment.local.{name}": {"augment.local": {}} for name in ("count", "size", "scale")},
    "optim.betas": {"optim.name": "adamw"},
    "optim.lr_scaling": {"train.batch_size": 512},
    "optim.plateau_factor": {"optim.schedule": "plateau"},
    "optim.plateau_patience": {"optim.schedule": "plateau"},
}


def context(name):
    view, _, rest = name.partition(".")
    if name in CONTEXT:
        return CONTEXT[name]
    if view in ("augment", "augment2") and "." in rest and not rest.endswith(".p"):
        return {f"{view}.{rest.partition('.')[0]}.p": 1.0}
    return {}


def test_every_setting_either_matters_or_is_ignored():
    """A new setting belongs in one of the tables above. Methods are tested below, with a second one."""
    unused = tuple(f"{name}." for name in Config().unused_sections())
    names = {name for name in setting_names(Config) if not name.startswith(unused)} - {"method"}
    assert {*MATTERS, *IGNORED, *FOLLOWS} == names


@pytest.mark.parametrize("name", MATTERS)
def test_the_key_changes_with(name):
    base = context(name)
    assert configured(base | {name: MATTERS[name]}).key() != configured(base).key()


@pytest.mark.parametrize("name", FOLLOWS)
def test_views_of_different_sizes_are_rejected(name):
    with pytest.raises(UserError, match="both views need one size"):
        configured({name: FOLLOWS[name]})


@pytest.mark.parametrize("name", IGNORED)
def test_the_key_does_not_change_with(name):
    config = configured({name: IGNORED[name]})
    assert config != Config()  # the value is not the default
    assert config.key() == Config().key()


JITTER = "augment.color_jitter"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({}, {"optim.betas": [0.5, 0.5]}, id="betas with lars"),
        pytest.param({"optim.name": "sgd"}, {"optim.name": "sgd", "optim.betas": [0.5, 0.5]}, id="betas with sgd"),
        pytest.param({"optim.name": "sgd"}, {"optim.name": "sgd", "optim.trust": 0.5}, id="trust with sgd"),
        pytest.param({"optim.name": "adamw"}, {"optim.name": "adamw", "optim.trust": 0.5}, id="trust with adamw"),
        pytest.param({"optim.name": "adamw"}, {"optim.name": "adamw", "optim.momentum": 0.5}, id="momentum with adamw"),
        pytest.param({"optim.weight_decay": 0}, {"optim.weight_decay": 0, "optim.decay_in_norm": True}, id="no decay"),
        pytest.param({"model.head": "none"}, {"model.head": "none", "model.hidden_dim": 8}, id="hidden without head"),
        pytest.param({"model.head": "none"}, {"model.head": "none", "model.out_dim": 8}, id="out without head"),
        pytest.param(
            {"model.head": "none"}, {"model.head": "none", "model.head_batch_norm": True}, id="norm without head"
        ),
        pytest.param(
            {"model.head": "linear"}, {"model.head": "linear", "model.hidden_dim": 8}, id="hidden with linear head"
        ),
        pytest.param({}, {"optim.plateau_factor": 0.5}, id="plateau factor without plateau"),
        pytest.param({}, {"optim.plateau_patience": 1}, id="plateau patience without plateau"),
        pytest.param({"optim.schedule": "plateau"}, {"optim.schedule": "plateau", "name": "x"}, id="name with plateau"),
        pytest.param({}, {"optim.lr_scaling": "none"}, id="scalings agree at 256"),
        pytest.param(
            {"train.batch_size": 1024, "optim.lr": 0.25},
            {"train.batch_size": 1024, "optim.lr": 1.0, "optim.lr_scaling": "none"},
            id="same peak rate, linear",
        ),
        pytest.param(
            {"train.batch_size": 1024, "optim.lr": 0.25, "optim.lr_scaling": "sqrt"},
            {"train.batch_size": 1024, "optim.lr": 0.5, "optim.lr_scaling": "none"},
            id="same peak rate, sqrt",
        ),
        pytest.param(
            {f"{JITTER}.strength": 0.5, f"{JITTER}.brightness": 0.5},
            {
                f"{JITTER}.strength": 1.0,
                f"{JITTER}.brightness": 0.25,
                f"{JITTER}.contrast": 0.4,
                f"{JITTER}.saturation": 0.4,
                f"{JITTER}.hue": 0.1,
            },
            id="same jitter ranges",
        ),
        pytest.param({}, {"data.side": 32}, id="default side of shapes"),
        pytest.param(
            {"data.dataset": "digits"},
            {"data.dataset": "digits", "data.side": 16},
            id="default side of digits",
        ),
        pytest.param({"augment.flip.p": 0.25}, {"augment.flip.p": 0.25, "augment2.flip.p": 0.25}, id="equal augment2"),
        pytest.param({}, {"augment2": {}}, id="augment2 empty"),
        pytest.param({}, {"train.norm_batch": 300}, id="same groups of batch norm"),
        pytest.param(
            {"train.norm_batch": 32}, {"train.norm_batch": 32, "train.micro_batch": 64}, id="other micro-batch"
        ),
        pytest.param({"optim.lr": 1}, {"optim.lr": 1.0}, id="integer for a float"),
        pytest.param(
            {"data.dataset": "folder", "data.dir": "a"}, {"data.dataset": "folder", "data.dir": "b"}, id="dir"
        ),
    ],
)
def test_configs_with_the_same_result_share_a_key(one, other):
    assert configured(one) != configured(other) or one == {"optim.lr": 1}
    assert configured(one).key() == configured(other).key()


@pytest.mark.parametrize(
    "name", [n for n in MATTERS if n.partition(".")[2].partition(".")[0] in AUGMENTATIONS and not n.endswith(".p")]
)
def test_the_key_does_not_depend_on_parameters_of_absent_augmentations(name):
    view, operation, _ = name.split(".")
    absent = {f"{view}.{operation}.p": 0.0}
    if name.endswith("crop.size"):
        resized = configured(absent | {name: MATTERS[name]})  # the whole image is resized, even without cropping
        assert resized.view_size() == MATTERS[name]
        assert resized.key() != configured(absent).key()
    else:
        assert configured(absent | {name: MATTERS[name]}).key() == configured(absent).key()


def test_batch_norm_groups_are_the_largest_divisor_up_to_norm_batch():
    assert configured({"train.batch_size": 128}).train.norm_images() == 128
    assert configured({"train.batch_size": 4096}).train.norm_images() == 256
    assert configured({"train.batch_size": 384}).train.norm_images() == 192
    assert configured({"train.batch_size": 4096}).train.micro_batches() == [256, 512, 1024, 2048, 4096]
    assert configured({"train.batch_size": 4096, "train.norm_batch": 64}).train.norm_images() == 64
    assert configured({"train.batch_size": 64, "train.norm_batch": 512}).train.norm_images() == 64
    assert configured({"train.batch_size": 64, "train.norm_batch": 30}).train.norm_images() == 16


def test_networks_without_batch_norm_take_any_batch():
    vit = {"model.backbone": "vit_mini_4", "model.stem": "imagenet", "train.batch_size": 514}
    assert configured(vit).train.batch_size == 514
    for changes in ({"method": "byol"}, {"model.head_batch_norm": True}):  # in the predictor, and in the head
        assert "too few for batch norm" in error_message(vit | changes)


@pytest.mark.parametrize(("batch", "group", "better"), [(514, 2, 512), (257, 1, 256)])
def test_batches_with_too_small_groups_for_batch_norm_are_rejected(batch, group, better):
    message = error_message({"train.batch_size": batch})
    assert f"equal groups of {group} images" in message
    assert message.endswith(f"too few for batch norm: try train.batch_size={better}")
    assert configured({"train.batch_size": better}).train.norm_images() == 256
    assert configured({"train.batch_size": 1000}).train.norm_images() == 250


@pytest.mark.parametrize(
    ("values", "nearest"),
    [({"train.batch_size": 1024, "train.micro_batch": 300}, 256), ({"train.micro_batch": 64}, 256)],
)
def test_micro_batches_that_do_not_divide_the_batch_are_rejected(values, nearest):
    message = error_message(values)
    assert "must divide train.batch_size" in message
    assert message.endswith(f"try {nearest}, or lower train.norm_batch")
    assert configured(values | {"train.micro_batch": nearest})
    assert error_message({"train.micro_batch": "half"}).startswith('train.micro_batch = "half": expected')


def test_the_key_depends_on_which_view_lacks_an_augmentation():
    keys = {configured({f"{view}.flip.p": 0.0}).key() for view in ("augment", "augment2")}
    assert len(keys | {Config().key()}) == 3


def test_a_value_that_is_the_default_of_another_setting_is_kept():
    for name, value in (("label_column", "auto"), ("group", "white"), ("split_column", "error")):
        config = make({"data": {name: value}})
        assert make(tomllib.loads(to_toml(config))) == config
        assert config.key() != Config().key()


def test_the_key_does_not_depend_on_the_order_of_settings():
    values = {"loss.temperature": 0.1, "train.epochs": 5, "augment.blur.p": 0.5, "augment.flip.p": 0.1, "seed": 3}
    assert configured(values).key() == configured(dict(reversed(values.items()))).key()


# If these keys change by mistake, finished runs can't be found again. An intended change increases RESULT_VERSION.
KEYS = {
    "eff00f4922d451fa": {},
    "1b0cf014a3e6b02e": {
        "loss.temperature": 0.1, "loss.normalize": False, "loss.include_self": True, "seed": 7,
    },
    "358913a68214cab1": {
        "optim.name": "sgd", "optim.lr": 0.5, "optim.lr_scaling": "sqrt", "train.batch_size": 1024,
        "model.head": "linear",
    },
    "af94e15cb71ff323": {
        "optim.name": "adamw", "optim.schedule": "plateau", "optim.plateau_patience": 3, "optim.weight_decay": 0,
        "model.head": "none",
    },
    "7b260fff72f4bbb9": {
        "optim.name": "muon", "optim.momentum": 0.95, "model.head": "mlp3", "model.hidden_dim": 64,
        "train.views": "split",
    },
    "9708e8e655c32d4e": {
        "augment.crop.p": 0, "augment.crop.size": 24, "augment.color_jitter.strength": 0.5, "augment2.solarize.p": 0.2,
    },
    "398c7fb66b76a405": {
        "augment.noise.p": 0.5, "augment.cutout.p": 0.5, "augment.rotation.p": 0.5, "augment.sobel.p": 0.1,
        "augment.flip.p": 0,
    },
    "22efb80e35f1f7c3": {
        "data.dataset": "folder", "data.dir": "/photos", "data.side": 48, "data.limit": 500,
        "data.normalize": "imagenet",
    },
    "72e0eaf996dcbd19": {
        "model.backbone": "resnet50", "model.width": 0.5, "model.stem": "stride2", "train.norm_batch": 100,
        "train.epochs": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_keys_stay_as_they_were(key):
    assert configured(KEYS[key]).key("auto") == key


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_key_has_the_precision_that_auto_stands_for(fast, precision, monkeypatch):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: fast)
    automatic, named = configured({"device": "cpu"}), configured({"device": "cpu", "train.precision": precision})
    assert automatic.precision() == precision
    assert automatic.key() == named.key()
    assert automatic.key("auto") == named.key("auto") != automatic.key()


def test_the_key_of_a_device_that_is_not_here_leaves_auto_as_it_is():
    config = configured({"device": "cuda:99"})
    assert (config.precision(), config.key()) == ("auto", Config().key("auto"))


# --- methods ----------------------------------------------------------------------------------------------------------


class OtherConfig(Section):
    """Settings of a second method."""

    momentum: float = 0.99


class OtherMethod(Method):
    """A second method, which is only configured here."""

    section_name = "other"
    section = OtherConfig


@pytest.fixture
def two_methods(monkeypatch):
    """A second copy of simclr.config, imported while METHODS has a second method."""
    monkeypatch.setitem(METHODS, "other", OtherMethod)
    spec = importlib.util.spec_from_file_location("config_with_two_methods", simclr.config.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_new_method_changes_nothing_for_simclr(two_methods):
    for values in ({}, {"other.momentum": 0.5}):
        config = two_methods.make(tables(values))
        assert config.key() == Config().key()
        assert config.flat() == Config().flat()
        assert two_methods.make(tomllib.loads(two_methods.to_toml(config))) == config
    assert "[other]" not in two_methods.to_toml(two_methods.Config())


def test_a_new_method_has_its_own_settings(two_methods):
    def other(**values):
        return two_methods.make({"method": "other"} | values)

    config = other(other={"momentum": 0.5})
    assert config.method_settings() == OtherConfig(momentum=0.5)
    assert len({config.key(), other().key(), Config().key()}) == 3
    assert other(loss={"temperature": 0.1}).key() == other().key()
    assert config.flat().items() >= {"method": "other", "other.momentum": 0.5}.items()
    assert not any(name.startswith("loss.") for name in config.flat())
    assert "[loss]" not in two_methods.to_toml(config)
    assert two_methods.make(tomllib.loads(two_methods.to_toml(config))) == config
