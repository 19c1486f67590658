"""Settings: what is refused and how, the round trip through TOML, and what the key of a run depends on."""

import os
import subprocess
import sys
import tomllib
from functools import reduce

import pytest
from pydantic import ValidationError

from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make, to_toml
from simclr.data.dataset import NORMALIZATIONS
from simclr.data.sources import DATASETS
from simclr.errors import UserError
from simclr.model import HEADS, STEMS
from simclr.optim import OPTIMIZERS, SCALINGS, SCHEDULES
from simclr.settings import merge, nested, settings
from simclr.views import pipeline
from tests.helpers import ROOT


def configured(values):
    """A Config from dotted names, e.g. {"loss.temperature": 0.1}."""
    return make(reduce(merge, (nested(name, value) for name, value in values.items()), {}))


def refusal(values):
    """The one-line message with which a Config is refused."""
    with pytest.raises(UserError) as caught:
        configured(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- values -----------------------------------------------------------------------------------------------------------


def test_no_settings_at_all_make_the_default_config():
    assert make({}) == Config()
    assert make(Config().model_dump()) == Config()


@pytest.mark.parametrize(("section", "field"), [(None, "seed"), ("loss", "temperature"), ("optim", "lr")])
def test_a_config_cannot_be_changed(section, field):
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(config, section) if section else config, field, 2)
    assert config == Config()


def test_the_parameters_of_an_augmentation_cannot_be_changed():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.augment.crop.p = 0.5


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("loss.temprature", "loss.temperature"),
        ("temperature", "loss.temperature"),
        ("train.batchsize", "train.batch_size"),
        ("augment.blurr", "augment.blur.p"),
        ("augment.blur.sigm", "augment.blur.sigma"),
        ("augment2.crop.scal", "augment2.crop.scale"),
        ("sede", "seed"),
        ("optim.weigth_decay", "optim.weight_decay"),
        ("optim.weight-decay", "optim.weight_decay"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(name, nearest):
    message = refusal({name: 1})
    assert f"unknown setting '{name}'" in message
    assert message.endswith(f"did you mean '{nearest}'?")  # and not all settings


def test_an_unknown_setting_like_no_other_is_refused_without_a_guess():
    message = refusal({"zzzzzz": 1})
    assert "did you mean" not in message
    assert "loss.temperature" in message  # the choices


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("loss.temperature", 0, "greater than or equal to 0.01"),
        ("loss.temperature", -0.5, "greater than or equal to 0.01"),
        ("loss.temperature", 1e6, "less than or equal to 1000"),
        ("train.batch_size", 1, "greater than or equal to 2"),
        ("train.batch_size", "many", "integer"),
        ("train.batch_size", 2.5, "integer"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("data.val_fraction", 0, "greater than 0"),
        ("data.val_fraction", 1, "less than 1"),
        ("data.limit", 1, "greater than or equal to 2"),
        ("data.side", 7, "greater than or equal to 8"),
        ("data.on_bad_image", "ignore", "'error' or 'skip'"),
        ("augment.blur.p", 1.5, "less than or equal to 1"),
        ("augment2.flip.p", -0.1, "greater than or equal to 0"),
        ("augment.crop.scale", [0.5, 0.2], "must not exceed"),
        ("augment.color_jitter", {"hue": 0.6}, "must not exceed 0.5"),
        ("augment.crop", {"p": 0.5, "size": 16}, "set p = 1"),
        ("optim.lr", 0, "greater than 0"),
        ("optim.lr", float("inf"), "finite"),
        ("optim.momentum", 1, "less than 1"),
        ("train.views", "both", "'fused' or 'split'"),
        ("train.precision", "fp8", "'fp32'"),
        ("seed", -1, "greater than or equal to 0"),
        ("model.out_dim", 0, "greater than or equal to 1"),
        ("loss", 3, "dictionary"),
        ("data.dataset", 5, "string"),
    ],
)
def test_a_bad_value_is_refused_with_setting_value_and_expectation(name, value, expected):
    message = refusal({name: value})
    assert message.startswith(name)
    assert expected in message
    shown = str(value).replace("'", '"') if not isinstance(value, float) or value < 1e300 else "Infinity"
    assert f"= {shown}" in message or f'= "{shown}"' in message


def test_a_value_that_is_not_a_number_is_refused():
    assert "loss.temperature = NaN" in refusal({"loss.temperature": float("nan")})


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"optim.betas": [0.9, 5.0]}, "optim.betas"),
        ({"optim.betas": [-0.1, 0.9]}, "optim.betas"),
        ({"optim.weight_decay": float("inf")}, "optim.weight_decay"),
        ({"optim.warmup_epochs": float("inf")}, "optim.warmup_epochs"),
        ({"optim.trust": float("inf")}, "optim.trust"),
        ({"augment.color_jitter.hue": 0.0, "augment.color_jitter.strength": float("inf")}, "augment.color_jitter"),
    ],
)
def test_a_value_that_no_training_can_use_is_refused_before_it_starts(values, setting):
    assert refusal(values).startswith(setting)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("data.dataset", "cifar", "cifar10"),
        ("data.dataset", "tiny_imagenet", "tiny-imagenet"),
        ("data.normalize", "datset", "dataset"),
        ("model.backbone", "resnet19", "resnet18"),
        ("model.stem", "cifr", "cifar"),
        ("model.head", "mpl", "mlp"),
        ("optim.name", "adam", "adamw"),
        ("optim.schedule", "cosin", "cosine"),
        ("optim.lr_scaling", "lin", "linear"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, value, nearest):
    message = refusal({name: value})
    assert f"'{value}'" in message
    assert f"did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("data.dataset", DATASETS),
        ("data.normalize", NORMALIZATIONS),
        ("model.stem", STEMS),
        ("model.head", HEADS),
        ("optim.name", OPTIMIZERS),
        ("optim.schedule", SCHEDULES),
        ("optim.lr_scaling", SCALINGS),
    ],
)
def test_every_name_in_a_table_can_be_chosen_and_has_a_key(name, table):
    assert len({configured({name: choice}).flat()[name] for choice in table}) == len(table)
    assert all(len(configured({name: choice, "train.batch_size": 512}).key()) == 16 for choice in table)


# --- views ------------------------------------------------------------------------------------------------------------


def test_a_pipeline_holds_the_present_augmentations_in_the_order_of_the_table():
    config = configured({f"augment.{name}.p": 1.0 for name in reversed(AUGMENTATIONS)})
    assert list(pipeline(config.augment)) == list(AUGMENTATIONS)
    config = configured({f"augment.{name}.p": float(name == "blur") for name in AUGMENTATIONS})
    assert list(pipeline(config.augment)) == ["blur"]


def test_the_second_view_is_like_the_first_unless_it_has_a_table_of_its_own():
    first, second = configured({"augment.blur.p": 0.3}).pipelines()
    assert first == second
    first, second = configured({"augment.blur.p": 1.0, "augment2.blur.p": 0.1}).pipelines()
    assert (first["blur"].p, second["blur"].p) == (1.0, 0.1)


def test_flat_leaves_absent_augmentations_out():
    flat = configured({"augment.blur.p": 0.0, "augment.solarize.p": 0.2}).flat()
    assert flat["augment.solarize.threshold"] == 0.5
    assert not [name for name in flat if name.startswith("augment.blur")]
    assert set(flat) <= set(settings(Config))


# --- TOML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": 'quotes " and \\ back\n\tslashes', "seed": 7},
        {"name": "déjà vu"},
        {"name": "a run \N{GRINNING FACE}"},
        {"data.dir": "/data/\N{GRINNING FACE}/my photos", "data.side": 48, "data.limit": 100},
        {"augment2.solarize.p": 0.2, "augment.crop.size": 16},
        {"augment2": {}},
        {"optim.name": "adamw", "optim.betas": [0.5, 0.75], "optim.weight_decay": 1e-12, "optim.lr": 1e22},
        {"model.head": "none", "model.hidden_dim": 64, "model.width": 0.25, "loss.normalize": False},
    ],
)
def test_toml_reads_back_to_an_equal_config(values):
    config = configured(values)
    again = make(tomllib.loads(to_toml(config)))
    assert again == config
    assert again.key() == config.key()


def test_a_config_that_never_saves_in_between_is_refused_or_reads_back_from_its_toml():
    try:
        config = configured({"train.checkpoint_minutes": float("inf")})
    except UserError:
        return
    assert make(tomllib.loads(to_toml(config))) == config


# --- the key ----------------------------------------------------------------------------------------------------------

# A different value of every setting that changes the result, where the rest of the config makes it read.
MATTERS = {
    "seed": 1,
    "data.dataset": "digits",
    "data.side": 48,
    "data.val_fraction": 0.2,
    "data.limit": 100,
    "data.split_seed": 1,
    "data.normalize": "half",
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
    "optim.betas": [0.8, 0.99],
    "optim.schedule": "constant",
    "optim.warmup_epochs": 5,
    "optim.plateau_factor": 0.5,
    "optim.plateau_patience": 3,
    "train.epochs": 50,
    "train.batch_size": 128,
    "train.norm_batch": 64,
    "train.views": "split",
    "train.precision": "fp32",
}
for _view in ("augment", "augment2"):
    MATTERS |= {
        f"{_view}.crop.p": 0.5,
        f"{_view}.crop.scale": [0.2, 0.9],
        f"{_view}.crop.ratio": [0.5, 2.0],
        f"{_view}.crop.size": 16,
        f"{_view}.flip.p": 0.25,
        f"{_view}.rotation.p": 0.25,
        f"{_view}.rotation.degrees": 45.0,
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

# A different value of every setting that does not change the result.
IGNORED = {
    "name": "another",
    "device": "cpu",
    "memory": "4GiB",
    "data.dir": "/somewhere/else",
    "data.on_bad_image": "skip",
    "train.knn_every": 0,
    "train.micro_batch": 256,
    "train.checkpoint_minutes": 1.0,
}

# Settings that must agree with another one, which matters.
FOLLOWS = {"augment2.crop.size": 24}
for _name in FOLLOWS:
    del MATTERS[_name]

# What makes a setting count that is not read by default.
CONTEXT = {
    "optim.betas": {"optim.name": "adamw"},
    "optim.lr_scaling": {"train.batch_size": 512},
    "optim.plateau_factor": {"optim.schedule": "plateau"},
    "optim.plateau_patience": {"optim.schedule": "plateau"},
}


def context(name):
    view, _, rest = name.partition(".")
    if view in ("augment", "augment2") and not rest.endswith(".p"):
        return {f"{view}.{rest.partition('.')[0]}.p": 1.0}
    return CONTEXT.get(name, {})


def test_every_setting_either_matters_or_is_ignored():
    """A new setting belongs in one of the two tables above."""
    assert sorted([*MATTERS, *IGNORED, *FOLLOWS]) == sorted(settings(Config))


@pytest.mark.parametrize("name", MATTERS)
def test_the_key_changes_with(name):
    base = context(name)
    assert configured(base | {name: MATTERS[name]}).key() != configured(base).key()


@pytest.mark.parametrize("name", FOLLOWS)
def test_views_of_different_sizes_are_refused(name):
    with pytest.raises(UserError, match="both views need one size"):
        configured({name: FOLLOWS[name]})


@pytest.mark.parametrize("name", IGNORED)
def test_the_key_does_not_change_with(name):
    config = configured({name: IGNORED[name]})
    assert config != Config()  # the value is another one
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
        pytest.param({}, {"data.side": 32}, id="the side that shapes has anyway"),
        pytest.param(
            {"data.dataset": "digits"},
            {"data.dataset": "digits", "data.side": 16},
            id="the side that digits has anyway",
        ),
        pytest.param({"augment.flip.p": 0.25}, {"augment.flip.p": 0.25, "augment2.flip.p": 0.25}, id="augment2 alike"),
        pytest.param({}, {"augment2": {}}, id="augment2 empty"),
        pytest.param({}, {"train.norm_batch": 300}, id="the groups of batch norm that it has anyway"),
        pytest.param(
            {"train.norm_batch": 32}, {"train.norm_batch": 32, "train.micro_batch": 64}, id="another micro-batch"
        ),
        pytest.param({"optim.lr": 1}, {"optim.lr": 1.0}, id="integer for a float"),
        pytest.param(
            {"data.dataset": "folder", "data.dir": "a"}, {"data.dataset": "folder", "data.dir": "b"}, id="dir"
        ),
    ],
)
def test_two_configs_that_ask_for_the_same_result_share_a_key(one, other):
    assert configured(one) != configured(other) or one == {"optim.lr": 1}
    assert configured(one).key() == configured(other).key()


@pytest.mark.parametrize("name", [n for n in MATTERS if n.startswith("augment") and not n.endswith(".p")])
def test_parameters_of_an_absent_augmentation_do_not_change_the_key(name):
    view, operation, _ = name.split(".")
    absent = {f"{view}.{operation}.p": 0.0}
    if name.endswith("crop.size"):
        resized = configured(absent | {name: MATTERS[name]})  # the whole image is, all the same
        assert resized.view_size() == MATTERS[name]
        assert resized.key() != configured(absent).key()
    else:
        assert configured(absent | {name: MATTERS[name]}).key() == configured(absent).key()


def test_batch_norm_is_over_a_part_of_the_batch_whatever_the_memory():
    assert configured({"train.batch_size": 128}).train.norm_images() == 128
    assert configured({"train.batch_size": 4096}).train.norm_images() == 256
    assert configured({"train.batch_size": 384}).train.norm_images() == 192
    assert configured({"train.batch_size": 4096}).train.micro_batches() == [256, 512, 1024, 2048, 4096]
    assert configured({"train.batch_size": 4096, "train.norm_batch": 64}).train.norm_images() == 64
    assert configured({"train.batch_size": 64, "train.norm_batch": 512}).train.norm_images() == 64
    assert configured({"train.batch_size": 64, "train.norm_batch": 30}).train.norm_images() == 16


@pytest.mark.parametrize(("batch", "group", "better"), [(514, 2, 512), (257, 1, 256)])
def test_a_batch_whose_parts_are_far_too_small_for_batch_norm_is_refused(batch, group, better):
    end = f"but of {group}, too few for batch norm: try {better}"
    assert refusal({"train.batch_size": batch}).endswith(end)
    assert configured({"train.batch_size": 1000}).train.norm_images() == 250


def test_batches_that_do_not_divide_are_refused():
    message = refusal({"train.batch_size": 1024, "train.micro_batch": 300})
    assert message.startswith("train.micro_batch = 300 must divide train.batch_size = 1024 and be of whole groups")
    assert message.endswith("of train.norm_batch (256): try 256, or set that too")
    assert refusal({"train.micro_batch": 64}).endswith("try 256, or set that too")


def test_a_micro_batch_that_is_no_number_is_named_by_its_setting():
    assert refusal({"train.micro_batch": "half"}).startswith('train.micro_batch = "half": expected')


def test_which_view_an_augmentation_is_missing_from_changes_the_key():
    keys = {configured({f"{view}.flip.p": 0.0}).key() for view in ("augment", "augment2")}
    assert len(keys | {Config().key()}) == 3


def test_the_order_of_the_settings_does_not_change_the_key():
    values = {"loss.temperature": 0.1, "train.epochs": 5, "augment.blur.p": 0.5, "augment.flip.p": 0.1, "seed": 3}
    assert configured(values).key() == configured(dict(reversed(values.items()))).key()


def test_the_key_is_the_same_in_another_process():
    config = configured({"augment2.blur.p": 0.5, "optim.name": "adamw", "model.head": "linear"})
    program = "import sys, tomllib; from simclr.config import make; print(make(tomllib.loads(sys.stdin.read())).key())"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=to_toml(config), env=env, capture_output=True, text=True, check=True)
    assert done.stdout == config.key() + "\n"
