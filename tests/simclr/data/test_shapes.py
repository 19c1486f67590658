"""The generated shapes are balanced, depend only on the seed, and have colours that say nothing about the class."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from simclr.data import shapes
from tests.simclr.data.helpers import open_data


@pytest.fixture(scope="module")
def drawn():
    """Images and labels of train, then of test."""
    return [shapes.render(3000, 0), shapes.render(2000, 1)]


def test_data_set_has_the_stated_images(home, monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN", 80)
    monkeypatch.setattr(shapes, "TEST", 16)
    data = open_data(home, "shapes")
    assert data.images.shape == (96, 3, shapes.SIDE, shapes.SIDE)
    assert data.classes == shapes.CLASSES
    assert np.array_equal(data.images[:80], shapes.render(80, 0)[0])
    assert data.parts["test"].tolist() == list(range(80, 96))
    assert np.bincount(data.labels[:80]).tolist() == [10] * 8


def test_images_depend_only_on_the_seed():
    images, labels = shapes.render(64, 0)
    assert images.dtype == np.uint8
    np.random.seed(123)
    assert np.array_equal(images, shapes.render(64, 0)[0])
    assert not (images == shapes.render(64, 1)[0]).all((1, 2, 3)).any()
    assert labels.tolist() == [*range(8)] * 8


def test_train_and_test_have_no_image_in_common(drawn):
    train, test = (set(map(bytes, images)) for images, _ in drawn)
    assert len(train) == 3000
    assert not train & test


def test_colours_say_nothing_about_the_class(drawn):
    colours = [images.mean((2, 3)) / 255 for images, _ in drawn]
    corners = [images[:, :, ::31, ::31].mean((2, 3)) / 255 for images, _ in drawn]  # mostly background
    y_train, y_test = (labels for _, labels in drawn)
    for train, test in (colours, corners, [np.concatenate(pair, 1) for pair in zip(colours, corners, strict=True)]):
        means = np.stack([train[y_train == label].mean(0) for label in range(8)])
        nearest = ((test[:, None] - means) ** 2).sum(2).argmin(1)
        logistic = LogisticRegression(max_iter=200).fit(train, y_train).predict(test)
        for predicted in (nearest, logistic):
            assert (predicted == y_test).mean() < 1 / 8 + 0.035  # chance plus more than four standard errors
