"""simclr/data/names.py: the files that a text in a table may mean."""

from __future__ import annotations

from simclr.data.names import Names


def test_only_the_files_that_a_name_may_mean_are_found() -> None:
    assert Names(["a.jpg", "c/b/a.jpg", "d/b/a.jpg"]).find("b/a.jpg") == ("c/b/a.jpg", "d/b/a.jpg")
    assert Names(["0/A.JPG", "x/a.jpg", "y/a.jpg"]).find("a.jpg") == ("x/a.jpg", "y/a.jpg")
    assert Names(["x/a.jpg", "y/a.png"]).find("a.png") == ("y/a.png",)
    assert Names(["x/a.jpg"]).find("b") == ()
