"""How well features predict the transformation that was applied to an image (paper, Table 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simclr.augment import Grayscale, Noise, Sobel
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import full_float32
from simclr.errors import UserError
from simclr.evaluate.base import Evaluation, Outcome, share_of_true
from simclr.evaluate.scaling import standardising
from simclr.evaluate.subject import Subject, hash_rows, represent, whole_images
from simclr.model import check_finite
from simclr.randomness import permutation, subseed, uniforms
from simclr.settings import MOST_IMAGES, Count, Epochs, Rate, Seed

# How often each class of a task occurs. In the paper, guessing is right 80, 25, 50 and 50 % of the time, too.
TASKS: dict[str, tuple[float, ...]] = {
    "grey": (0.8, 0.2),
    "turn": (0.25, 0.25, 0.25, 0.25),
    "noise": (0.5, 0.5),
    "sobel": (0.5, 0.5),
}
BATCH = 256


class Transformations(Evaluation):
    """How often a classifier with one hidden layer predicts from frozen features which transformation an image had.

    The tasks are: grey or not, rotated by 0 to 3 quarter turns, noisy or not, and Sobel-filtered or not. The
    classifier is trained on pre-training images, and tested on test images, or on validation images if there are none.
    """

    section_name = "transformations"
    needs_labels = False  # but it tests on the test images

    images: int = Field(5000, ge=2, le=MOST_IMAGES)  # largest number of images to train on, and of images to test on
    hidden: Count = 512  # width of the hidden layer
    epochs: Epochs = 20  # number of passes over the training images
    lr: Rate = 1e-3  # learning rate of Adam
    seed: Seed = 0  # seed of the choice of images, of their transformations, and of the classifier

    def _rows(self, data: Dataset) -> tuple[Array, Array]:
        """Rows of the images to learn from and to test on."""
        parts = (data.parts["pretrain"], data.parts["test" if len(data.parts["test"]) else "val"])
        first, second = (
            rows[permutation(len(rows), self.seed, "transformations").numpy()[: self.images]] for rows in parts
        )
        return first, second

    def check(self, subject: Subject) -> None:
        """Raise UserError if there are no images to test on."""
        on_val = subject.protocol.on == "val"  # then nothing takes the place of missing images
        if not len(subject.data.parts["test"] if on_val else self._rows(subject.data)[1]):
            raise UserError(
                "--transformations needs test or validation images, but there are none: train with data.val_fraction "
                "above 0"
            )

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """The strength of the noise, which is that of the encoder's views, and the images to learn from."""
        return {"noise": _noise(config).sigma, "pretrain": hash_rows(self._rows(data)[0])}

    def run(self, subject: Subject) -> Outcome:
        """Train and test a classifier for each task."""
        metrics = {}
        for done, task in enumerate(TASKS, 1):
            (x, y), (queries, truth) = (
                self._examples(subject, task, rows, part)
                for rows, part in zip(self._rows(subject.data), ("train", "test"), strict=True)
            )
            scaled = standardising(x)
            right = self._fit(scaled(x), y, len(TASKS[task]))(scaled(queries)).argmax(1) == truth
            metrics[f"transformation_{task}"] = share_of_true(right)
            subject.observer.progress("transformations", done, len(TASKS))
        return Outcome(metrics)

    @torch.no_grad()
    def _examples(self, subject: Subject, task: str, rows: Array, part: str) -> tuple[Tensor, Tensor]:
        """Features (N x D) of transformed images, and which transformation each has (N)."""
        model, training, purpose = subject.model, subject.model.training, ("transformations", task, part)
        shares = torch.tensor(TASKS[task])
        drawn = uniforms((len(rows), 3), self.seed, *purpose)
        classes = torch.bucketize(drawn[:, 2].contiguous(), shares.cumsum(0)[:-1])
        noise, found, start = _noise(subject.config), [], 0
        model.eval()
        for batch in whole_images(subject.data.images, rows, model):
            here = slice(start, start + len(batch))
            with full_float32():
                images = transformed(task, batch, classes[here], drawn[here, :2], noise)
                found.append(represent(model, images, subject.protocol.layer))
            start += len(batch)
        model.train(training)
        return check_finite(torch.cat(found)), classes.to(subject.device)

    @full_float32()
    def _fit(self, x: Tensor, y: Tensor, classes: int) -> nn.Module:
        """A classifier of features (N x D), given their classes (N)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(subseed(self.seed, "transformations network"))
            layers = nn.Linear(x.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes)
        network = nn.Sequential(*layers).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        for epoch in range(self.epochs):
            for picked in permutation(len(x), self.seed, "transformations order", epoch).to(x.device).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(x[picked]), y[picked]).backward()
                optimizer.step()
        return network


def _noise(config: Config) -> Noise:
    """The noise of the encoder's views, whose strength is known also if they have none."""
    noise: Noise = getattr(config.augment, "noise")  # noqa: B009 (mypy doesn't know the fields)
    return noise


def transformed(task: str, images: Tensor, classes: Tensor, u: Tensor, noise: Noise) -> Tensor:
    """Images (N x 3 x S x S), each with the transformation of its class (N). `u` (N x 2) holds uniform numbers."""
    result = images.clone()
    for which in range(1, len(TASKS[task])):
        rows = (classes == which).nonzero().squeeze(1)
        some = images[rows.to(images.device)]
        if task == "turn":
            some = some.rot90(which, (-2, -1))
        elif len(rows):
            some = {"grey": Grayscale(), "noise": noise, "sobel": Sobel()}[task](some, u[rows])
        result[rows.to(images.device)] = some
    return result
