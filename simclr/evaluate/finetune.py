"""Classifiers trained by SGD on random crops, on top of the frozen encoder (linear_sgd) or with it (finetune)."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simclr.augment import Crop, Flip
from simclr.augmentation import Fraction, FractionRange
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import autocast, full_float32, place, resolve_precision, send
from simclr.errors import UserError
from simclr.evaluate.base import Evaluation, Outcome, accuracies, accuracy, is_right, share_right
from simclr.evaluate.subject import BaseProtocol, Subject, features, represent, whole_images
from simclr.model import Network
from simclr.randomness import permutation, subseed
from simclr.settings import MOST_VALUES, BatchSize, Count, Epochs, Rate, Values
from simclr.views import Pipeline, apply, draw

FEW = 0.01  # the fraction of the labels for which the paper trains longer


class Sgd(Evaluation):
    """Settings of SGD with Nesterov momentum 0.9, no weight decay, cosine decay, random crops and flips."""

    lr: Values[Rate] = (0.1,)  # rate for a batch of 256, scaled linearly; of several, the best on validation is used
    epochs: Epochs = 90  # number of passes over the labelled images (paper, B.6)
    min_steps: Count = 1  # smallest number of steps: with few images, there are more epochs
    batch_size: BatchSize = 256  # number of images in a batch
    crop: FractionRange = (0.08, 1.0)  # area of the random crop as a fraction of the image
    # Classifier: linear, or mlp, which is features -> features -> classes with a ReLU.
    head: Literal["linear", "mlp"] = "linear"

    def chooses(self, protocol: BaseProtocol) -> str:  # noqa: ARG002
        fixed = f"which --set {self.section_name}.lr=[{self.lr[0]:g}] fixes"
        return f"its learning rate ({fixed})" if len(self.lr) > 1 else ""

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """The autocast dtype, and that float32 is not TF32 where earlier versions used that."""
        dtype = resolve_precision(config.train.precision, device)
        tf32 = {"tf32": "never"} if dtype == torch.float32 and device.type == "cuda" else {}
        return {"dtype": str(dtype)} | tf32


class LinearSgd(Sgd):
    """The paper's probe: a linear classifier on the frozen encoder, trained by SGD on crops of the training images."""

    section_name = "linear_sgd"

    def run(self, subject: Subject) -> Outcome:
        """Test accuracy, and the learning rate that was chosen."""
        parts = subject.data.parts
        lr, classifier = best_rate(subject, parts["train"], parts["val"], self, 0, frozen=True)
        outcome = accuracies(class_scores(classifier, subject, parts["test"]), subject.labels("test"), "linear_sgd")
        return outcome._replace(metrics=outcome.metrics | {"linear_sgd_lr": lr})


class Finetune(Sgd):
    """Encoder and classifier trained together on some of the labels (paper, B.5, with a rate of 0.05 at 256).

    The learning rate is chosen with the labels of the first seed alone: a fifth of them is held out for this. If they
    are too few for that, it is the first rate. Validation images are not used.
    """

    section_name = "finetune"
    in_metric_names = frozenset({"fractions"})

    # Learning rates to choose from, on a fifth of the labels. The first is used if several are equally good.
    lr: Values[Rate] = (0.05, 0.01, 0.2)
    epochs: Epochs = 30  # number of epochs with more than 1 % of the labels (paper, B.5)
    few_epochs: Epochs = 60  # number of epochs with up to 1 % of the labels (paper, B.5)
    min_steps: Count = 200
    # Number of seeds, each with its own choice of labels, initial classifier, order of images and crops.
    seeds: int = Field(3, ge=1, le=MOST_VALUES)
    # Shares of the labels, each of which gives an accuracy; --finetune sets them.
    fractions: Values[Fraction] = (0.01, 0.1, 1.0)

    def chooses(self, protocol: BaseProtocol) -> str:  # noqa: ARG002
        return ""  # nothing for which it needs validation images

    def run(self, subject: Subject) -> Outcome:
        """Test accuracy after training on each fraction of the labels.

        For 1 %, the mean over the seeds is finetune_1pct_top1 and their standard deviation finetune_1pct_std. The
        predictions are those of the first seed.
        """
        whole = Outcome({}, {})
        for fraction in self.fractions:
            part = self._run_fraction(subject, fraction)
            metrics, predictions = whole.metrics | part.metrics, whole.predictions | part.predictions
            whole = Outcome(metrics, predictions, part.network, right=whole.right | part.right)
        return whole

    def _run_fraction(self, subject: Subject, fraction: float) -> Outcome:
        name, truth, data = f"finetune_{fraction * 100:g}pct", subject.labels("test"), subject.data
        settings = self.model_copy(update={"epochs": self.few_epochs if fraction <= FEW else self.epochs})
        given: list[Tensor] = []
        lr, first = self.lr[0], None
        for seed in range(self.seeds):
            rows = label_subset(data.labels, data.parts["train"], fraction, seed)
            if len(rows) < 2:
                raise UserError(f"finetune.fractions = {fraction:g} leaves {len(rows)} labelled image: raise it")
            held = held_out(data.labels, rows)
            if seed == 0 and len(self.lr) > 1 and len(held):
                lr, _ = best_rate(subject, np.setdiff1d(rows, held), held, settings, seed, frozen=False)
            classifier = fit(subject, rows, settings, lr, seed, frozen=False)
            first = first or classifier
            given.append(class_scores(classifier, subject, data.parts["test"]))
        results = [accuracies(scores, truth, name) for scores in given]
        metrics = {key: float(np.mean([one.metrics[key] for one in results])) for key in results[0].metrics}
        metrics[f"{name}_lr"] = lr
        if self.seeds > 1:
            metrics[f"{name}_std"] = float(np.std([one.metrics[f"{name}_top1"] for one in results], ddof=1))
        tops = {top: k for k in (1, 5) if (top := f"{name}_top{k}") in metrics}
        right = {top: share_right([is_right(scores, truth, k) for scores in given]) for top, k in tops.items()}
        return Outcome(metrics, results[0].predictions, first, right=right)


class Classifier(nn.Module):
    """A copy of an encoder up to a layer, with new layers on top: images (N x 3 x S x S, in [0, 1]) -> N x classes."""

    def __init__(self, model: Network, layer: str, width: int, classes: int, hidden: int) -> None:
        """`width` is that of the layer, and `hidden` the number of hidden layers of the classifier: 0 or 1."""
        super().__init__()
        self.model, self.layer = model, layer
        last = nn.Linear(width, classes)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if hidden else last

    def forward(self, images: Tensor, frozen: bool = False) -> Tensor:
        """Class scores. With `frozen`, no gradient reaches the encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = represent(self.model, images, self.layer)
        return self.head(x)  # type: ignore[no-any-return]


def new_classifier(subject: Subject, classes: int, kind: str, seed: int) -> Classifier:
    """A classifier on a copy of the subject's encoder, whose new layers have the seed's initial weights."""
    model, layer = copy.deepcopy(subject.model), subject.protocol.layer
    width = features(model, subject.data.images, subject.data.parts["test"][:1], torch.float32, layer).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(subseed(seed, "init", "classifier"))
        return Classifier(model, layer, width, classes, kind == "mlp").to(subject.device)


def label_subset(labels: Array, rows: Array, fraction: float, seed: int) -> Array:
    """Choose the rows that keep their labels, by seed.

    Every class keeps the same number, at least one image and at most all that it has.
    """
    classes = np.unique(labels[rows])
    each = max(1, round(fraction * len(rows) / len(classes)))
    chosen = [
        same[permutation(len(same), seed, "labels", int(label)).numpy()[:each]]
        for label in classes
        for same in [rows[labels[rows] == label]]
    ]
    return np.sort(np.concatenate(chosen)) if fraction < 1 else rows


def held_out(labels: Array, rows: Array) -> Array:
    """A fifth of some rows to choose a learning rate with: of each class, and one of each that has two to four."""
    classes = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    chosen = [
        same[permutation(len(same), 0, "held out", number).numpy()[: max(1, len(same) // 5)]]
        for number, same in enumerate(classes)
        if len(same) > 1
    ]
    return np.concatenate([rows[:0], *chosen])


@full_float32()
def fit(subject: Subject, rows: Array, settings: Sgd, lr: float, seed: int, *, frozen: bool) -> Classifier:
    """Train a classifier on the labelled images in `rows`. The subject's own network stays as it is."""
    data, device = subject.data, subject.device
    classifier = new_classifier(subject, len(data.classes), settings.head, seed)
    trained = classifier.head if frozen else classifier
    batch = min(settings.batch_size, len(rows))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    steps = max(settings.min_steps, settings.epochs * len(rows) // batch)
    scaler = torch.amp.GradScaler(device.type, enabled=subject.dtype == torch.float16)
    views: Pipeline = {"crop": Crop(scale=settings.crop, size=subject.model.side), "flip": Flip()}
    classifier.train(not frozen)
    stored, classes = place(torch.from_numpy(data.images), device), torch.from_numpy(data.labels)
    for step in range(steps):
        epoch, position = divmod(step, len(rows) // batch)
        if position == 0:
            order = rows[permutation(len(rows), seed, "classifier", epoch).numpy()]
        picked = order[position * batch : (position + 1) * batch]
        chosen = torch.from_numpy(picked)
        images = stored[send(chosen, stored.device)].to(device)
        images = apply(images, views, draw(views, batch, seed, step, 0))
        labels = send(classes[chosen], device)
        torch.manual_seed(subseed(seed, "classifier network", step))  # for dropout and stochastic depth
        with autocast(device, subject.dtype):
            scores = classifier(images, frozen)
        loss = F.cross_entropy(scores.float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        rate = lr * settings.batch_size / 256 * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        scaler.step(optimizer)
        scaler.update()
        if step % 10 == 9:
            subject.observer.progress("classifier", step + 1, steps)
    return classifier.eval()


@torch.no_grad()
def class_scores(classifier: Classifier, subject: Subject, rows: Array) -> Tensor:
    """Scores (N x classes) for the whole images in `rows`, in float32."""
    images = whole_images(subject.data.images, rows, subject.model)
    with full_float32():
        return torch.cat([classifier(batch) for batch in images])


def best_rate(
    subject: Subject, rows: Array, held: Array, settings: Sgd, seed: int, *, frozen: bool
) -> tuple[float, Classifier]:
    """The learning rate whose classifier, trained on `rows`, is best on the images in `held`, and that classifier.

    If rates are equally good, it is the first. A single rate needs no such images.
    """
    if len(settings.lr) == 1:
        return settings.lr[0], fit(subject, rows, settings, settings.lr[0], seed, frozen=frozen)
    truth, best, chosen = torch.from_numpy(subject.data.labels[held]).to(subject.device), -1.0, None
    for lr in settings.lr:
        classifier = fit(subject, rows, settings, lr, seed, frozen=frozen)
        score = accuracy(class_scores(classifier, subject, held), truth)
        if score > best:  # also for scores that are not finite, whose accuracy is low
            best, chosen = score, (lr, classifier)
    assert chosen is not None
    return chosen
