"""simclr/errors.py: lists in messages."""

from __future__ import annotations

from pathlib import Path

from simclr.errors import NEAREST, first_few, similar_path, suggest, unknown


def test_a_long_list_of_choices_is_cut_to_the_nearest() -> None:
    names = [f"setting{n}" for n in range(100)]
    assert suggest("setting41", names) == "did you mean 'setting41'?"
    message = str(unknown("setting", "zzz", names))
    assert message.startswith("unknown setting 'zzz': of 100 choices, the nearest are ")
    assert message.count("setting") == NEAREST + 1


def test_a_suggestion_does_not_mind_capitals() -> None:
    for given in ("BYOL", "Byol"):
        assert suggest(given, ["byol", "moco", "simclr"]).startswith("did you mean 'byol'?")


def test_a_word_of_a_name_suggests_the_name_unless_several_have_it() -> None:
    names = ["blur", "color_jitter", "crop", "cutout"]
    for given in ("colour", "Color", "jitter"):
        assert suggest(given, names).startswith("did you mean 'color_jitter'?")
    assert suggest("croop", names).startswith("did you mean 'crop'?")
    assert suggest("color", [*names, "color_drop"]).startswith("did you mean 'color_drop'?")  # its whole name is nearer
    assert suggest("sizes", ["crop.p_size", "train.b_size"]).startswith("choose from")


def test_a_long_list_of_facts_is_cut_and_counted() -> None:
    assert first_few(["a", "b"], "; ") == "a; b"
    assert first_few([str(n) for n in range(300)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 290 more"


def test_a_path_is_suggested_that_exists_and_is_not_the_one_given(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "fotos").symlink_to(tmp_path / "gone")  # of a disk that is not there
    assert similar_path(tmp_path / "photo") == str(tmp_path / "photos")
    assert similar_path(tmp_path / "fotos") == str(tmp_path / "photos")
    assert similar_path(tmp_path / "photos") is None
    assert similar_path(tmp_path / "nowhere" / "photos") is None
