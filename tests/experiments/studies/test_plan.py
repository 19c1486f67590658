from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve, resolve_timed
from experiments.studies.axes import axes
from experiments.studies.plan import BASELINE, is_number, plan_study
from simclr.augment import AUGMENTATIONS
from simclr.config import Config
from simclr.errors import UserError
from simclr.model import Network
from simclr.settings import settings
from simclr.train.loop import batch_rows
from simclr.views import apply, draw
from tests.helpers import tiny

AUGMENTED = {"augment": {"blur": {"p": 0.5}}}


def baseline(**sections: object) -> Config:
    return tiny(**(AUGMENTED | sections))


def names(config: Config) -> set[str]:
    return set(config.pipelines()[0])


def test_each_dropped_augmentation_is_a_cell_against_the_baseline_or_all_are_one() -> None:
    each = plan_study(baseline(), drop=["color_jitter", "grayscale"])
    assert [cell.name for cell in each.cells] == [BASELINE, "no color_jitter", "no grayscale"]
    assert names(baseline()) - names(each.cells[1].config) == {"color_jitter"}
    together = plan_study(baseline(), drop=["color_jitter", "grayscale"], together=True)
    assert [cell.name for cell in together.cells] == [BASELINE, "no color_jitter, grayscale"]
    assert names(baseline()) - names(together.cells[1].config) == {"color_jitter", "grayscale"}


@pytest.mark.parametrize("preset", [name for name in presets() if resolve_timed(name)[1] is None])
def test_each_augmentation_of_a_preset_can_be_left_out_and_left_alone(preset: str) -> None:
    config = resolve(preset, settings=["data.dataset=digits"])
    plan = plan_study(config, axis="augmentations")
    assert len(plan.cells) == 1 + len(names(config) | set(config.pipelines()[1]))
    assert {cell.config.view_size() for cell in plan.cells} == {config.view_size()}
    plan_study(config, alone=["flip"])


def test_without_its_crop_the_whole_image_is_resized_to_the_views() -> None:
    config = baseline(augment={"crop": {"size": 24}})
    whole, _ = plan_study(config, drop=["crop"]).cells[1].config.pipelines()
    image = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = {"crop": whole["crop"]}
    views = apply(image, alone, draw(alone, 2, 0, 0, 0))
    torch.testing.assert_close(views, F.interpolate(image / 255, size=(24, 24), mode="bilinear", antialias=True))


def test_only_keeps_one_augmentation_and_turns_an_absent_one_on() -> None:
    plan = plan_study(baseline(), alone=["crop", "cutout"])
    assert [names(cell.config) for cell in plan.cells[1:]] == [{"crop"}, {"cutout"}]


def test_both_views_lose_what_is_dropped_when_they_differ() -> None:
    config = baseline(augment2={"solarize": {"p": 0.2}})
    cell = plan_study(config, drop=["flip"]).cells[1]
    assert all("flip" not in view for view in cell.config.pipelines())
    assert "solarize" in cell.config.pipelines()[1]
    assert "solarize" not in cell.config.pipelines()[0]


def test_leaving_each_one_out_has_a_cell_for_each_augmentation_of_the_baseline() -> None:
    plan = plan_study(baseline(), axis="augmentations")
    assert [cell.name for cell in plan.cells] == [BASELINE, *(f"no {name}" for name in baseline().pipelines()[0])]
    assert {cell.name: cell.direction for cell in plan.cells}["no crop"] == "lower"


@pytest.mark.parametrize("axis", ["augmentation-pairs", "augmentation-pairs-one-sided"])
def test_the_matrix_of_pairs_has_every_two_and_each_alone(axis: str) -> None:
    plan = plan_study(baseline(), axis=axis)
    k = len(axes()[axis].pairs)
    assert len(plan.cells) == 1 + k + k * (k - 1) // 2
    first, second = next(cell for cell in plan.cells if cell.name == "only cutout + sobel").config.pipelines()
    assert set(second) == {"crop", "cutout", "sobel"} if "one-sided" in axis else {"cutout", "sobel"}
    assert set(first) == ({"crop"} if "one-sided" in axis else {"cutout", "sobel"})


@pytest.mark.parametrize("axis", list(axes()))
def test_every_axis_that_comes_with_the_suite_makes_valid_cells(axis: str) -> None:
    plan = plan_study(baseline(), axis=axis)
    assert len(plan.cells) > 1
    assert plan.cells[0].name == BASELINE
    assert len({cell.identity() for cell in plan.cells}) == len(plan.cells)
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    if plan.x:
        assert plan.x in settings(Config)


def test_the_papers_differences_are_to_the_cell_that_the_baseline_is() -> None:
    plan = plan_study(baseline(loss={"temperature": 0.1}), axis="temperature")
    by_name = {cell.name: cell.difference for cell in plan.cells}
    assert by_name["temperature=0.05"] == pytest.approx(59.7 - 64.4)
    assert by_name["temperature=0.2"] is None
    assert "temperature=0.1" not in by_name  # it is the baseline
    unknown = plan_study(baseline(loss={"temperature": 0.3}), axis="temperature")
    assert {cell.difference for cell in unknown.cells} == {None}


def test_a_layer_of_the_same_network_is_a_cell_of_its_own() -> None:
    plan = plan_study(baseline(), axis="head")
    (judged,) = [cell for cell in plan.cells if cell.layer == "z"]
    assert judged.config.key() == plan.cells[0].config.key()
    assert judged.difference == -10


def test_expectations_hold_only_where_the_paper_looked() -> None:
    def expected(axis: str, **sections: object) -> dict[str, tuple[float | None, str | None]]:
        plan = plan_study(baseline(**sections), axis=axis)
        return {cell.name: (cell.difference, cell.direction) for cell in plan.cells}

    assert expected("head")["head=none"] == (-10, None)
    assert set(expected("head", model={"head": "linear"}).values()) == {(None, None)}
    assert expected("batch-size", train={"batch_size": 512}) == {
        BASELINE: (None, None),
        "batch_size=64": (None, None),
        "batch_size=128": (None, None),
        "batch_size=256": (None, "lower"),
        "batch_size=1024": (None, "higher"),
    }


def test_crossed_with_another_setting_the_same_batch_is_neither_larger_nor_smaller() -> None:
    plan = plan_study(baseline(train={"batch_size": 512}), axis="batch-size", vary=["train.epochs=50,200"])
    directions = {cell.name: cell.direction for cell in plan.cells}
    assert directions["epochs=50"] is directions["epochs=200"] is None
    assert {directions[f"batch_size={size}, epochs={epochs}"] for size in (256, 1024) for epochs in (50, 200)} == {None}
    crossed = plan_study(
        baseline(train={"batch_size": 512, "epochs": 50}), axis="batch-size", vary=["train.epochs=50,200"]
    )
    directions = {cell.name: cell.direction for cell in crossed.cells}
    assert directions["batch_size=1024, epochs=50"] == "higher"
    assert directions["batch_size=256, epochs=50"] == "lower"
    assert directions["batch_size=1024, epochs=200"] is directions["batch_size=256, epochs=200"] is None


def test_only_one_augmentation_stays_in_the_view_that_has_it() -> None:
    config = baseline(augment2={"noise": {"p": 0.7}})
    (cell,) = plan_study(config, alone=["noise"]).cells[1:]
    views = cell.config.augment, cell.config.augment2
    assert [view.noise.p for view in views] == [0.0, 0.7]  # type: ignore[union-attr]
    (cell,) = plan_study(config, alone=["sobel"]).cells[1:]
    assert [view.sobel.p for view in (cell.config.augment, cell.config.augment2)] == [1.0, 1.0]  # type: ignore[union-attr]


def test_what_is_true_or_false_is_no_numeric_axis() -> None:
    plan = plan_study(baseline(), vary=["loss.normalize=true,false"])
    assert not plan.log
    assert not any(is_number(cell.x) for cell in plan.cells)


def test_what_is_set_for_view_one_holds_for_view_two_where_they_agree() -> None:
    config = baseline(augment2={"solarize": {"p": 0.2}})
    strength = plan_study(config, vary=["augment.color_jitter.strength=0.3,0.6"]).cells[1].config
    assert strength.augment2 is not None
    assert strength.augment.color_jitter.strength == strength.augment2.color_jitter.strength == 0.3  # type: ignore[attr-defined]
    solarized = plan_study(config, vary=["augment.solarize.p=0.5,0.9"]).cells[1].config
    assert solarized.augment2 is not None
    assert solarized.augment2.solarize.p == 0.2  # type: ignore[attr-defined]


def test_every_cell_of_a_numeric_axis_has_its_place_also_where_an_operation_is_absent() -> None:
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


def test_an_axis_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\nabout = "rates"\nx = "optim.lr"\ncells = [{ set = { "optim.lr" = 0.1 } }]\n')
    plan = plan_study(baseline(), axis=str(path))
    assert [cell.name for cell in plan.cells] == [BASELINE, "lr=0.1"]
    assert plan.x == "optim.lr"


def test_a_cell_may_be_a_preset_on_the_images_and_seeds_of_the_baseline(tmp_path: Path) -> None:
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
    "axis": ({"axis": "temprature"}, "did you mean 'temperature'"),
    "augmentation": ({"drop": ["colour_jitter"]}, "did you mean 'color_jitter'"),
    "absent augmentation": ({"drop": ["sobel"]}, "the baseline has no 'sobel' to drop"),
    "one value": ({"vary": ["loss.temperature=0.1"]}, "has 1 value: expected two or more"),
    "the same value": ({"vary": ["loss.temperature=0.1,0.1"]}, "expected two or more"),
    "no value": ({"vary": ["loss.temperature"]}, "expected two or more"),
    "wrong type": ({"vary": ["loss.temperature=warm,cold"]}, "loss.temperature = "),
    "unknown setting": ({"vary": ["loss.temprature=1,2"]}, "did you mean 'loss.temperature'"),
    "seeds": ({"vary": ["seed=0,1"]}, "seed can't be varied: what is compared has the same seeds"),
    "images": ({"vary": ["data.limit=100,200"]}, "data.limit can't be varied"),
    "twice": ({"vary": ["loss.temperature=0.1,0.2", "loss.temperature=0.3,0.4"]}, "stands there twice"),
    "on both sides": ({"axis": "temperature", "vary": ["loss.temperature=0.3,0.4"]}, "set the same: leave one of them"),
    "dropped and varied": ({"drop": ["flip"], "vary": ["augment.flip.p=0.1,0.4"]}, "and 'no flip' set the same"),
    "together": ({"together": True, "axis": "head"}, "--together has nothing to join"),
    "nothing": ({}, "nothing differs from the baseline"),
    "file": ({"axis": "nowhere.toml"}, "can't read the config file nowhere.toml"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_planned_is_said(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(UserError, match=message.replace("'", ".")):
        plan_study(baseline(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('about = "x"', "'about' is not an axis"),
        ("[a]\ncell = []", "did you mean 'cells'"),
        ('[a]\ncells = [{ sett = { "optim.lr" = 1 } }]', "did you mean 'set'"),
        ("[a]\n[b]", "holds 2 axes"),
        ("[a]\ncells = [{}]", "cell 1 of the axis: expected what it sets"),
        ('[a]\ncells = [{ preset = "cifar11" }]', "did you mean 'cifar10'"),
        ('[a]\ncells = [{ preset = "overnight" }]', "overnight goes by the clock"),
        ('[a]\ncells = [{ preset = "cifar10", set = { seed = 1 } }]', "seed can't be varied"),
        ("[a]\ncells = 3", "axis 'a': cells = 3"),
        ("[a]\ncells = [{ set = { data.limit = 100 } }]", "data.limit can't be varied"),
        ("[a]\nleave_out = true\ncells = [{ set = { optim.lr = 1 } }]", "expected one of cells, leave_out and pairs"),
        (
            "[a]\nreference = { 'model.heat' = 'mlp' }\ncells = [{ set = { optim.lr = 1 } }]",
            "did you mean 'model.head'",
        ),
        ('[a]\ncells = [{ set = { "optim.lr" = 1 }, direction = "up" }]', "direction = .up."),
        (
            '[a]\nx = "optim.weight_decay"\nlog = true\ncells = [{ set = { "optim.weight_decay" = 0 } }]',
            "optim.weight_decay = 0 has no place on it",
        ),
        ('[a]\nx = "optim.lrr"', "did you mean 'optim.lr'"),
        (
            "[a]\ncells = ["
            '{ set = { "optim.lr" = 1 }, name = "a" }, { set = { "optim.lr" = 1 }, name = "a", layer = "z" }]',
            "2 cells are called 'optim.lr=1'",
        ),
    ],
)
def test_a_file_that_is_no_axis_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=message.replace("'", ".")):
        plan_study(baseline(), axis=str(tmp_path / "mine.toml"))


def test_cells_are_paired_same_weights_same_order_same_draws(digits) -> None:  # type: ignore[no-untyped-def]
    from simclr.build import build_model

    plan = plan_study(baseline(), drop=["color_jitter", "crop"])
    first, *others = [cell.of_seed(3) for cell in plan.cells]

    def weights(config: Config) -> Network:
        return build_model(config, digits, torch.device("cpu"))

    for other in others:
        assert other.seed == first.seed == 3
        for a, b in zip(weights(first).state_dict().values(), weights(other).state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(batch_rows(first, digits, 5, 7), batch_rows(other, digits, 5, 7))
        for view in (0, 1):
            mine, theirs = (draw(config.pipelines()[view], 16, 3, 7, view) for config in (first, other))
            assert set(theirs) < set(mine)
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_changed_head_leaves_the_encoders_initial_weights(digits) -> None:  # type: ignore[no-untyped-def]
    from simclr.build import build_model

    plan = plan_study(baseline(), axis="head")
    encoders = [build_model(cell.of_seed(1), digits, torch.device("cpu")).encoder.state_dict() for cell in plan.cells]
    for encoder in encoders[1:]:
        assert all(torch.equal(a, b) for a, b in zip(encoders[0].values(), encoder.values(), strict=True))


def test_seeds_are_the_outer_loop_so_that_a_study_cut_short_is_paired() -> None:
    plan = plan_study(baseline(), drop=["flip"])
    jobs = [(cell.name, seed) for cell, seed in plan.jobs([0, 1])]
    assert jobs == [(BASELINE, 0), ("no flip", 0), (BASELINE, 1), ("no flip", 1)]


def test_settings_that_end_in_the_same_word_give_cells_of_different_names() -> None:
    plan = plan_study(baseline(), vary=["augment.crop.p=0.1,0.5", "augment.blur.p=0.1,0.5"])
    assert [cell.name for cell in plan.cells[1:]] == [
        f"crop.p={one}, blur.p={other}" for one in (0.1, 0.5) for other in (0.1, 0.5)
    ]


def test_the_baseline_stands_on_the_line_of_every_cell_that_it_is() -> None:
    sizes = {f"batch_size={size}": float(size) for size in (64, 128, 512, 1024)}
    lines = plan_study(baseline(), axis="batch-size").lines
    assert lines == {"": sizes | {BASELINE: 256.0}}
    crossed = plan_study(baseline(), axis="batch-size", vary=["optim.lr_scaling=linear,sqrt"]).lines
    assert crossed == {
        f"lr_scaling={rule}": {f"{name}, lr_scaling={rule}": size for name, size in sizes.items()} | {BASELINE: 256.0}
        for rule in ("linear", "sqrt")
    }


def test_a_line_is_named_by_what_else_is_varied() -> None:
    lines = plan_study(baseline(loss={"temperature": 0.3}), axis="temperature").lines
    assert set(lines) == {"loss.normalize=True", "loss.normalize=False"}
    assert lines["loss.normalize=True"][BASELINE] == 0.3
    assert set(lines["loss.normalize=False"].values()) == {10.0, 100.0}
    strengths = plan_study(baseline(), axis="color-strength").lines
    assert sorted(len(line) for line in strengths.values()) == [1, 4]


def test_a_pair_that_is_the_baseline_keeps_its_place_in_the_matrix() -> None:
    pairs = {cell.pair for cell in plan_study(baseline(), axis="augmentation-pairs").cells if cell.pair}
    two = baseline(augment={name: {"p": 0.0} for name in set(AUGMENTATIONS) - {"crop", "color_jitter", "grayscale"}})
    plan = plan_study(two, axis="augmentation-pairs")
    assert plan.cells[0].pair == ("crop", "color_jitter+grayscale")
    assert {cell.pair for cell in plan.cells} == pairs
