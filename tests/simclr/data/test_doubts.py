"""Classes that may be mistakes are named, a few of them."""

import pytest

from simclr.data.doubts import doubtful_labels


@pytest.mark.parametrize(
    "counts",
    [{}, {"a": 5, "b": 9}, {"a": 0, "b": 9}, {"stripes": 66, "stripse": 60}],
    ids=["none", "enough", "a class of another split", "similar names"],
)
def test_usual_classes_give_no_warning(counts):
    assert doubtful_labels(counts) == []


def test_few_of_many_rare_classes_are_named_and_misspelled_ones_first():
    counts = {f"class {i}": 1 for i in range(300)} | {"discs": 40, "disks": 2, "class 999": 50}
    (warning,) = doubtful_labels(counts)
    assert "301 of 303 classes have fewer than 5 images" in warning
    assert warning.count("(1)") == 5  # whose names differ from that of another class only in their number
    assert "and 296 more" in warning
    (warning,) = doubtful_labels({"other": 1, "discs": 40, "disks": 2})
    assert "'disks' (2, did you mean 'discs'?), 'other' (1)" in warning
