"""Plans of studies: which cells there are, how they are named, and what they change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve, resolve_timed
from experiments.studies.axes import axes
from experiments.studies.cell import BASELINE, baseline_label, is_number
from experiments.studies.plan import plan_study
from simclr.augment import AUGMENTATIONS
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.model import Network
from simclr.train.loop import batch_rows
from simclr.views import apply, batch_views, draw
from tests.helpers import tiny

AUGMENTED = {"augment": {"blur": {"p": 0.5}}}


def baseline(**sections: object) -> Config:
    return tiny(**(AUGMENTED | sections))


def names(config: Config) -> set[str]:
    return set(config.pipelines()[0])


def test_dropped_augmentations_are_one_cell_each_or_one_cell_together() -> None:
    each = plan_study(baseline(), drop=["color_jitter", "grayscale"])
    assert [cell.name for cell in each.cells] == [BASELINE, "no color_jitter", "no grayscale"]
    assert names(baseline()) - names(each.cells[1].config) == {"color_jitter"}
    together = plan_study(baseline(), drop=["color_jitter", "grayscale"], together=True)
    assert [cell.name for cell in together.cells] == [BASELINE, "no color_jitter, grayscale"]
    assert names(baseline()) - names(together.cells[1].config) == {"color_jitter", "grayscale"}


@pytest.mark.parametrize("preset", [name for name in presets() if resolve_timed(name)[1] is None])
def test_each_augmentation_of_a_preset_can_be_dropped(preset: str) -> None:
    config = resolve(preset, settings=["data.dataset=digits"])
    plan = plan_study(config, axis="augmentations")
    assert len(plan.cells) == 1 + len(names(config) | set(config.pipelines()[1]))
    assert {cell.config.view_size() for cell in plan.cells} == {config.view_size()}
    plan_study(config, alone=["flip"])


def test_without_crop_the_whole_image_is_resized() -> None:
    config = baseline(augment={"crop": {"size": 24}})
    whole, _ = plan_study(config, drop=["crop"]).cells[1].config.pipelines()
    image = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = {"crop": whole["crop"]}
    views = apply(image, alone, draw(alone, 2, 0, 0, 0))
    torch.testing.assert_close(views, F.interpolate(image / 255, size=(24, 24), mode="bilinear", antialias=True))


def test_only_keeps_one_augmentation_and_adds_an_absent_one() -> None:
    plan = plan_study(baseline(), alone=["crop", "cutout"])
    assert [names(cell.config) for cell in plan.cells[1:]] == [{"crop"}, {"cutout"}]


def test_an_augmentation_is_dropped_from_both_views() -> None:
    config = baseline(augment2={"solarize": {"p": 0.2}})
    cell = plan_study(config, drop=["flip"]).cells[1]
    assert all("flip" not in view for view in cell.config.pipelines())
    assert "solarize" in cell.config.pipelines()[1]
    assert "solarize" not in cell.config.pipelines()[0]


def test_leave_out_gives_a_cell_for_each_augmentation() -> None:
    plan = plan_study(baseline(), axis="augmentations")
    assert [cell.name for cell in plan.cells] == [BASELINE, *(f"no {name}" for name in baseline().pipelines()[0])]
    assert {cell.name: cell.direction for cell in plan.cells}["no crop"] == "lower"


@pytest.mark.parametrize("axis", ["augmentation-pairs", "augmentation-pairs-one-sided"])
def test_pairs_give_a_cell_for_each_pair_and_each_augmentation_alone(axis: str) -> None:
    plan = plan_study(baseline(), axis=axis)
    k = len(axes()[axis].pairs)
    assert len(plan.cells) == 1 + k + k * (k - 1) // 2
    both = {"shared_crop"} if "one-sided" in axis else set()
    for name, second in (
        ("cutout + sobel", {"cutout", "sobel"}),
        ("crop + flip + quarter_turn", {"crop", "flip", "quarter_turn"}),
    ):
        views = next(cell for cell in plan.cells if cell.name == f"only {name}").config.pipelines()
        assert set(views[1]) == both | second
        assert set(views[0]) == (both or second)


def test_the_one_sided_set_up_crops_once_as_the_baseline_does_and_augments_one_view(digits: Dataset) -> None:
    start = baseline(augment={"crop": {"scale": [0.3, 0.9], "size": 24}, "flip": {"p": 0.0}})
    plan = plan_study(start, axis="augmentation-pairs-one-sided")
    pipelines = next(cell for cell in plan.cells if cell.name == "only quarter_turn").config.pipelines()
    for view in pipelines:
        assert (view["shared_crop"].p, view["shared_crop"].scale) == (1, (0.3, 0.9))  # type: ignore[attr-defined]
    plain, turned = batch_views(torch.from_numpy(digits.images[:4]), pipelines, 0, 0)(slice(0, 4))
    assert plain.shape == (4, 3, 24, 24)
    for one, other in zip(plain, turned, strict=True):
        assert min((one.rot90(k, (1, 2)) - other).abs().max() for k in (1, 2, 3)) < 1e-5
    crop = next(cell for cell in plan.cells if cell.name == "only crop + flip").config.pipelines()[1]
    assert (crop["crop"].p, crop["flip"].p) == (1, 0.5)  # the paper's, because the baseline has no flip


def test_expected_differences_are_relative_to_the_cell_that_equals_the_baseline() -> None:
    plan = plan_study(baseline(loss={"temperature": 0.1}), axis="temperature")
    by_name = {cell.name: cell.difference for cell in plan.cells}
    assert by_name["temperature=0.05"] == pytest.approx(59.7 - 64.4)
    assert by_name["temperature=0.2"] is None
    assert "temperature=0.1" not in by_name  # it is the baseline
    unknown = plan_study(baseline(loss={"temperature": 0.3}), axis="temperature")
    assert {cell.against for cell in unknown.cells if cell.difference} == {"temperature=0.1"}


def test_another_layer_of_the_same_network_is_a_cell() -> None:
    plan = plan_study(baseline(), axis="head")
    (judged,) = [cell for cell in plan.cells if cell.layer == "z"]
    assert judged.config.key() == plan.cells[0].config.key()
    assert judged.difference == -10


def test_expectations_need_a_baseline_that_the_paper_tried() -> None:
    def expected(axis: str, **sections: object) -> dict[str, tuple[float | None, str | None]]:
        plan = plan_study(baseline(**sections), axis=axis)
        return {cell.name: (cell.difference, cell.direction) for cell in plan.cells}

    assert expected("head")["head=none"] == (-10, None)
    linear = {"lr_scaling": "linear"}
    assert expected("batch-size", train={"batch_size": 512}, optim=linear) == {
        BASELINE: (None, None),
        "batch_size=64": (None, None),
        "batch_size=128": (None, None),
        "batch_size=256": (None, "lower"),
        "batch_size=1024": (None, "higher"),
    }


def facts(axis: str, vary: Sequence[str] = (), **sections: object) -> dict[str, tuple[object, str | None, str | None]]:
    """What is expected of each cell, of which other cell that is different, and why nothing is expected."""
    plan = plan_study(baseline(**sections), axis=axis, vary=vary)
    return {cell.name: (cell.difference or cell.direction, cell.against, cell.caveat) for cell in plan.cells[1:]}


def test_larger_batches_are_only_comparable_if_the_rate_grows_with_them() -> None:
    reason = "in the paper the learning rate grows with the batch (optim.lr_scaling = linear or sqrt)"
    found = facts("batch-size")
    assert found["batch_size=512"] == found["batch_size=1024"] == (None, None, reason)
    assert found["batch_size=64"] == (None, None, "the paper has train.batch_size from 256 up")
    scaled = facts("batch-size", optim={"lr_scaling": "sqrt"})
    assert scaled["batch_size=1024"] == ("higher", None, None)
    crossed = facts("batch-size", ["optim.lr_scaling=none,linear"])
    assert crossed["batch_size=512, lr_scaling=linear"] == ("higher", None, None)  # linear and none agree at 256
    assert crossed["batch_size=512, lr_scaling=none"][2] == reason


def test_what_an_axis_states_does_not_apply_to_other_cells_of_its_study() -> None:
    for axis, sections in {"head": {"model": {"head": "linear"}}, "batch-size": {"train": {"batch_size": 256}}}.items():
        vary = ["loss.temperature=0.1,0.2"]
        plan = plan_study(baseline(**sections), drop=["crop", "flip"], alone=["flip"], axis=axis, vary=vary)
        found = {cell.name: (cell.direction, cell.against, cell.caveat) for cell in plan.cells if cell.apart}
        alone = plan_study(baseline(**sections), drop=["crop", "flip"], alone=["flip"], axis=axis).cells
        found |= {cell.name: (cell.direction, cell.against, cell.caveat) for cell in alone if cell.apart}
        assert found.pop("no crop") == ("lower", None, None)
        assert set(found.values()) == {(None, None, None)}
        assert len(found) == 8


def test_cells_that_the_paper_tried_are_compared_with_each_other_if_it_did_not_try_the_baseline() -> None:
    """The baseline of the tests has ResNet-18, a temperature of 0.2, a width of 0.125 and two epochs."""
    temperature = facts("temperature")
    assert temperature["temperature=0.05"] == (-4.7, "temperature=0.1", None)
    assert temperature["loss.normalize=False, temperature=100.0"] == (-7.4, "temperature=0.1", None)
    assert temperature["temperature=0.1"] == (None, None, None)
    narrow = facts("width")
    assert narrow["width=2.0"] == ("higher", "width=1.0", None)
    assert narrow["width=0.25"] == (None, None, "the paper has model.width from 1 up")
    shallow = facts("backbone", model={"backbone": "resnet10"})
    assert [shallow[f"backbone=resnet{depth}"][:2] for depth in (18, 34, 50)] == [
        (None, None), ("higher", "backbone=resnet18"), ("higher", "backbone=resnet18"),
    ]  # fmt: skip
    assert facts("backbone", model={"backbone": "resnet34"})["backbone=resnet18"] == ("lower", None, None)
    assert facts("epochs")["epochs=40"] == ("higher", None, None)
    linear = facts("head", model={"head": "linear"})
    assert linear["head=none"] == (-10, "head=mlp", None)


@pytest.mark.parametrize("preset", ["shapes", "cifar10-cpu", "cifar10"])
@pytest.mark.parametrize("axis", ["backbone", "epochs", "temperature", "color-strength", "head", "width"])
def test_presets_that_people_can_run_have_expectations(axis: str, preset: str) -> None:
    plan = plan_study(resolve(preset), axis=axis)
    assert any(cell.difference is not None or cell.direction is not None for cell in plan.cells)


def test_crossed_cells_have_a_direction_only_if_nothing_else_differs() -> None:
    linear = {"lr_scaling": "linear"}
    start = baseline(train={"batch_size": 512, "epochs": 50}, optim=linear)
    crossed = plan_study(start, axis="batch-size", vary=["train.epochs=50,200"])
    found = {cell.name: (cell.direction, cell.against) for cell in crossed.cells}
    assert found["epochs=200"] == ("higher", "batch_size=256, epochs=200")
    assert found["batch_size=1024, epochs=50"] == ("higher", None)
    assert found["batch_size=256, epochs=50"] == ("lower", None)
    assert found["batch_size=1024, epochs=200"] == ("higher", "batch_size=256, epochs=200")
    assert found["batch_size=256, epochs=200"] == (None, None)


def test_only_keeps_the_probability_of_each_view() -> None:
    config = baseline(augment2={"noise": {"p": 0.7}})
    (cell,) = plan_study(config, alone=["noise"]).cells[1:]
    views = cell.config.augment, cell.config.augment2
    assert [view.noise.p for view in views] == [0.0, 0.7]  # type: ignore[union-attr]
    (cell,) = plan_study(config, alone=["sobel"]).cells[1:]
    assert [view.sobel.p for view in (cell.config.augment, cell.config.augment2)] == [1.0, 1.0]  # type: ignore[union-attr]


def test_booleans_have_no_numeric_axis() -> None:
    plan = plan_study(baseline(), vary=["loss.normalize=true,false"])
    assert not plan.log
    assert not any(is_number(cell.x) for cell in plan.cells)


def test_a_change_of_view_one_also_changes_view_two_if_they_agree() -> None:
    config = baseline(augment2={"solarize": {"p": 0.2}})
    strength = plan_study(config, vary=["augment.color_jitter.strength=0.3,0.6"]).cells[1].config
    assert strength.augment2 is not None
    assert strength.augment.color_jitter.strength == strength.augment2.color_jitter.strength == 0.3  # type: ignore[attr-defined]
    solarized = plan_study(config, vary=["augment.solarize.p=0.5,0.9"]).cells[1].config
    assert solarized.augment2 is not None
    assert solarized.augment2.solarize.p == 0.2  # type: ignore[attr-defined]


def test_a_probability_of_zero_is_on_the_numeric_axis() -> None:
    plan = plan_study(baseline(), axis="grayscale")
    assert sorted(cell.x for cell in plan.cells) == [0.0, 0.1, 0.2, 0.5]


def test_any_setting_can_be_varied_and_crossed() -> None:
    plan = plan_study(baseline(), vary=["loss.temperature=0.1,0.2,0.5"])
    assert [cell.config.loss.temperature for cell in plan.cells] == [0.2, 0.1, 0.5]  # 0.2 is the baseline
    assert plan.x == "loss.temperature"
    assert not plan.log
    assert plan_study(baseline(), vary=["optim.lr=1e-4,1e-3"]).log
    assert not plan_study(baseline(), vary=["optim.weight_decay=0,1e-3"]).log
    assert not plan_study(baseline(), vary=["train.views=fused,split"]).log
    crossed = plan_study(baseline(), vary=["loss.temperature=0.1,0.5", "train.views=fused,split"])
    assert len(crossed.cells) == 1 + 4
    assert crossed.x is None
    lists = plan_study(baseline(), vary=["augment.crop.scale=[0.2,1.0],[0.5,1.0]"])
    assert [cell.config.augment.crop.scale for cell in lists.cells[1:]] == [(0.2, 1.0), (0.5, 1.0)]  # type: ignore[attr-defined]
    both = plan_study(baseline(), drop=["flip"], vary=["train.views=fused,split"])
    expected = [BASELINE, "views=split", "no flip, views=fused", "no flip, views=split"]
    assert [cell.name for cell in both.cells] == expected


def test_values_of_one_setting_are_compared_with_the_paper_as_those_of_its_axis() -> None:
    def expected(**how: Any) -> dict[str, Any]:
        cells = plan_study(baseline(), **how).cells[1:]
        return {cell.name: (cell.difference, cell.direction, cell.source, cell.caveat, cell.against) for cell in cells}

    axis = expected(axis="temperature")
    varied = expected(vary=["loss.temperature=0.1,0.5,0.7"])
    assert varied.pop("temperature=0.7") == (None, None, "Table 5", None, None)  # the paper did not try it
    assert varied == {name: axis[name] for name in varied}
    assert expected(vary=["model.head=none"]) == {"head=none": (-10.0, None, "Fig. 8", None, None)}
    crossed = expected(vary=["model.head=none", "model.out_dim=32"])
    assert {difference for difference, *_ in crossed.values()} == {None}


def test_dropped_augmentations_and_varied_values_form_a_whole_table() -> None:
    plan = plan_study(baseline(), drop=["flip"], alone=["crop"], vary=["loss.temperature=0.1"])
    values = {cell.name: (cell.config.augment.flip.p > 0, cell.config.loss.temperature) for cell in plan.cells}
    assert values == {
        BASELINE: (True, 0.2),
        "temperature=0.1": (True, 0.1),
        "no flip": (False, 0.2),
        "no flip, temperature=0.1": (False, 0.1),
        "only crop": (False, 0.2),
        "only crop, temperature=0.1": (False, 0.1),
    }
    assert plan.cells[2] == plan_study(baseline(), drop=["flip"]).cells[1]  # also what the paper leads to expect


def test_an_axis_can_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\nabout = "rates"\nx = "optim.lr"\ncells = [{ set = { "optim.lr" = 0.1 } }]\n')
    plan = plan_study(baseline(), axis=str(path))
    assert [cell.name for cell in plan.cells] == [BASELINE, "lr=0.1"]
    assert plan.x == "optim.lr"


def test_a_cell_can_be_a_preset_with_the_images_and_seed_of_the_baseline(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[mine]\ncells = ["
        '{ preset = "cifar10-from-scratch" }, { preset = "icml2020-report", set = { "train.epochs" = 2 }, name = "b" }]'
    )
    start = baseline(seed=5, augment2={"noise": {"p": 1.0}})
    plan = plan_study(start, axis=str(path))
    assert [cell.name for cell in plan.cells] == [BASELINE, "preset=cifar10-from-scratch", "b"]
    _, first, second = (cell.config for cell in plan.cells)
    assert first.data.dataset == start.data.dataset == "digits"
    assert first.seed == second.seed == 5
    for made, preset, epochs in ((first, "cifar10-from-scratch", 200), (second, "icml2020-report", 2)):
        itself = resolve(preset, seed=5, epochs=epochs)
        assert made.data.normalize == itself.data.normalize != start.data.normalize
        same = {"data": itself.data, "name": itself.name, "device": itself.device}
        precision = itself.train.model_copy(update={"precision": start.train.precision})
        assert made.model_copy(update=same) == itself.model_copy(update={"train": precision})
    crossed = plan_study(start, axis=str(path), vary=["loss.temperature=0.1,0.3"])
    assert crossed.cells[-1].name == "b, temperature=0.3"
    assert crossed.cells[-1].config == changed(second, {"loss.temperature": 0.3})
    assert crossed.cells[-1].settings == {"preset": "icml2020-report", "train.epochs": 2, "loss.temperature": 0.3}


BAD = {
    "augmentation": ({"drop": ["colour_jitter"]}, "did you mean 'color_jitter'"),
    "absent augmentation": ({"drop": ["sobel"]}, "the baseline doesn't use 'sobel'"),
    "its own value": ({"vary": ["loss.temperature=0.2,0.20"]}, "0.2,0.20 is the baseline's own value: give another"),
    "empty": ({"vary": ["loss.temperature="]}, "has no value: expected one or more"),
    "one wrong value": ({"vary": ["loss.temperature=0.1,abc"]}, 'loss.temperature = "abc": expected a number'),
    "no value": ({"vary": ["loss.temperature"]}, "expected SETTING=VALUE,VALUE"),
    "wrong type": ({"vary": ["loss.temperature=warm,cold"]}, "loss.temperature = "),
    "unknown setting": ({"vary": ["loss.temprature=1,2"]}, "did you mean 'loss.temperature'"),
    "seeds": ({"vary": ["seed=0,1"]}, "seed can't be varied: runs can only be compared on the same images"),
    "name": ({"vary": ["name=a,b"]}, "name can't be varied: it changes no result"),
    "images": ({"vary": ["data.limit=100,200"]}, "data.limit can't be varied"),
    "twice": ({"vary": ["loss.temperature=0.1,0.2", "loss.temperature=0.3,0.4"]}, "is given twice"),
    "on both sides": (
        {"axis": "temperature", "vary": ["loss.temperature=0.3,0.4"]},
        "change the same setting: remove one of them",
    ),
    "dropped and varied": (
        {"drop": ["flip"], "vary": ["augment.flip.p=0.1,0.4"]},
        "and 'no flip' change the same",
    ),
    "together": ({"together": True, "axis": "head"}, "--together has nothing to combine"),
    "nothing": ({}, "nothing differs from the baseline"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_in_the_arguments_is_an_error(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(UserError, match=message):
        plan_study(baseline(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('cells = [{ preset = "cifar11" }]', "did you mean 'cifar10'"),
        ('cells = [{ preset = "overnight" }]', "preset 'overnight' has a time budget"),
        ('cells = [{ preset = "cifar10", set = { seed = 1 } }]', "seed can't be varied"),
        ("cells = [{ set = { data.limit = 100 } }]", "data.limit can't be varied"),
        (
            'x = "optim.weight_decay"\nlog = true\ncells = [{ set = { "optim.weight_decay" = 0 } }]',
            "optim.weight_decay = 0 can't be drawn on a logarithmic axis",
        ),
        (
            'cells = [{ set = { "optim.lr" = 1 }, name = "a" }, { set = { "optim.lr" = 1 }, name = "a", layer = "z" }]',
            "2 cells have the name 'optim.lr=1'",
        ),
    ],
)
def test_a_cell_of_a_file_that_is_not_valid_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"[a]\n{text}")
    with pytest.raises(UserError, match=message):
        plan_study(baseline(), axis=str(tmp_path / "mine.toml"))


def test_cells_share_initial_weights_order_and_draws(digits: Dataset) -> None:
    plan = plan_study(baseline(), drop=["color_jitter", "crop"])
    first, *others = [cell.of_seed(3) for cell in plan.cells]

    def weights(config: Config) -> Network:
        return build_model(config, digits, torch.device("cpu"))

    for other in others:
        assert other.seed == first.seed == 3
        for a, b in zip(weights(first).state_dict().values(), weights(other).state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(next(batch_rows(first, digits, 7)), next(batch_rows(other, digits, 7)))
        for view in (0, 1):
            mine, theirs = (draw(config.pipelines()[view], 16, 3, 7, view) for config in (first, other))
            assert set(theirs) < set(mine)
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_another_head_leaves_the_initial_weights_of_the_encoder(digits: Dataset) -> None:
    plan = plan_study(baseline(), axis="head")
    encoders = [build_model(cell.of_seed(1), digits, torch.device("cpu")).encoder.state_dict() for cell in plan.cells]
    for encoder in encoders[1:]:
        assert all(torch.equal(a, b) for a, b in zip(encoders[0].values(), encoder.values(), strict=True))


def test_a_study_is_named_after_what_it_varies() -> None:
    plan = plan_study(baseline(), drop=["crop"], alone=["flip"], axis="head", vary=["loss.temperature=0.1,0.2"])
    assert plan.name == "tiny-no-crop-only-flip-head-temperature"
    assert plan_study(baseline(), drop=["crop", "flip"], together=True).name == "tiny-together-no-crop-no-flip"


def test_all_cells_of_a_seed_come_before_the_next_seed() -> None:
    plan = plan_study(baseline(), drop=["flip"])
    jobs = [(cell.name, seed) for cell, seed in plan.jobs([0, 1])]
    assert jobs == [(BASELINE, 0), ("no flip", 0), (BASELINE, 1), ("no flip", 1)]


def test_cell_names_tell_settings_with_the_same_ending_apart() -> None:
    plan = plan_study(baseline(), vary=["augment.crop.p=0.1,0.5", "augment.blur.p=0.1,0.5"])
    assert [cell.name for cell in plan.cells[1:]] == [
        f"crop.p={one}, blur.p={other}" for one in (0.1, 0.5) for other in (0.1, 0.5)
    ]


def test_the_baseline_is_on_the_line_of_every_cell_that_it_equals() -> None:
    sizes = {f"batch_size={size}": float(size) for size in (64, 128, 512, 1024)}
    lines = plan_study(baseline(), axis="batch-size").lines
    assert lines == {"": sizes | {BASELINE: 256.0}}
    crossed = plan_study(baseline(), axis="batch-size", vary=["optim.lr_scaling=linear,sqrt"]).lines
    assert crossed == {
        f"lr_scaling={rule}": {f"{name}, lr_scaling={rule}": size for name, size in sizes.items()} | {BASELINE: 256.0}
        for rule in ("linear", "sqrt")
    } | {"lr_scaling=none": sizes | {BASELINE: 256.0}}


def test_lines_are_named_after_the_other_varied_settings() -> None:
    lines = plan_study(baseline(loss={"temperature": 0.3}), axis="temperature").lines
    assert set(lines) == {"loss.normalize=True", "loss.normalize=False"}
    assert lines["loss.normalize=True"][BASELINE] == 0.3
    assert set(lines["loss.normalize=False"].values()) == {10.0, 100.0}
    strengths = plan_study(baseline(), axis="color-strength").lines
    assert sorted(len(line) for line in strengths.values()) == [1, 4]


def test_a_pair_that_equals_the_baseline_stays_in_the_matrix() -> None:
    pairs = {cell.pair for cell in plan_study(baseline(), axis="augmentation-pairs").cells if cell.pair}
    two = baseline(
        augment={name: {"p": 0.0} for name in set(AUGMENTATIONS) - {"crop", "flip", "color_jitter", "grayscale"}}
    )
    plan = plan_study(two, axis="augmentation-pairs")
    assert plan.cells[0].pair == ("crop+flip", "color_jitter+grayscale")
    assert {cell.pair for cell in plan.cells} == pairs


def test_a_study_has_a_bounded_number_of_cells() -> None:
    tens = ",".join(f"0.{n}1" for n in range(10))
    vary = [f"augment.{name}.p={tens}" for name in ("flip", "grayscale", "blur", "noise", "sobel", "rotation")]
    with pytest.raises(UserError, match="would have 1000000 cells: expected at most 1000"):
        plan_study(baseline(), vary=vary)
    with pytest.raises(UserError, match="would have 2002 cells"):
        plan_study(baseline(), drop=["flip"], vary=vary[1:4])


def test_a_name_that_is_too_long_for_a_cell_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="expected at most 1000 characters"):
        plan_study(baseline(name="x" * 995), drop=["flip"])


@pytest.mark.parametrize(
    ("cells", "x", "label"),
    [
        ([("no crop", {"augment.crop.p": 0.0})], None, "baseline"),  # --drop varies no value
        ([("temperature=0.1", {"loss.temperature": 0.1})], None, "baseline (temperature=0.2)"),
        (
            [("no crop, temperature=0.1", {"augment.crop.p": 0.0, "loss.temperature": 0.1})],
            None,
            "baseline (temperature=0.2)",
        ),
        ([("method=byol", {"method": "byol"})], None, "baseline (method=simclr)"),
        ([("half", {"loss.temperature": 0.1})], "loss.temperature", "baseline (temperature=0.2)"),
        ([("a", {"preset": "a", "loss.temperature": 0.1})], None, "baseline"),
        ([("sigma=0.2", {"augment.noise.p": 0.5, "augment.noise.sigma": 0.2})], None, "baseline"),  # which has no noise
    ],
)
def test_the_baseline_is_named_with_its_values_of_what_is_varied(
    cells: list[tuple[str, dict[str, object]]], x: str | None, label: str
) -> None:
    assert baseline_label(cells, tiny().flat(), x) == label
