"""Classifiers trained by SGD on random crops: on the frozen encoder (linear_sgd), or together with it (finetune)."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr.augment import Crop, Flip
from simclr.data.images import Array
from simclr.device import autocast, whole_float32
from simclr.errors import UserError
from simclr.evaluate.linear import accuracies, accuracy, hits
from simclr.evaluate.protocol import Sgd
from simclr.evaluate.subject import Outcome, Subject, features, represent, whole_images
from simclr.randomness import permutation, subseed
from simclr.views import Pipeline, apply, draw


class Classifier(nn.Module):
    """A copy of an encoder up to a layer, and new layers on it: images (N x 3 x S x S in [0, 1]) -> N x classes."""

    def __init__(self, subject: Subject, classes: int, kind: str, seed: int) -> None:
        super().__init__()
        self.model, self.layer = copy.deepcopy(subject.model), subject.protocol.layer
        width = features(
            self.model, subject.data.images, subject.data.parts["test"][:1], torch.float32, self.layer
        ).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(subseed(seed, "init", "classifier"))
            last = nn.Linear(width, classes)
            self.head = last if kind == "linear" else nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
        self.head.to(subject.device)

    def forward(self, images: Tensor, frozen: bool = False) -> Tensor:
        """Class scores; with `frozen`, no gradient reaches the encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = represent(self.model, images, self.layer)
        return self.head(x)  # type: ignore[no-any-return]


def label_subset(labels: Array, rows: Array, fraction: float, seed: int) -> Array:
    """The rows that keep their labels: as many of each class (at least one; of a small class all it has), by seed."""
    classes = np.unique(labels[rows])
    each = max(1, round(fraction * len(rows) / len(classes)))
    chosen = [
        same[permutation(len(same), seed, "labels", int(label)).numpy()[:each]]
        for label in classes
        for same in [rows[labels[rows] == label]]
    ]
    return np.sort(np.concatenate(chosen)) if fraction < 1 else rows


def fit(subject: Subject, rows: Array, settings: Sgd, lr: float, seed: int, *, frozen: bool) -> Classifier:
    """A classifier trained on the labelled images in `rows`. The subject's own network is left as it was."""
    data, device = subject.data, subject.device
    classifier = Classifier(subject, len(data.classes), settings.head, seed)
    trained = classifier.head if frozen else classifier
    batch = min(settings.batch_size, len(rows))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    steps = max(settings.min_steps, settings.epochs * len(rows) // batch)
    scaler = torch.amp.GradScaler(device.type, enabled=subject.dtype == torch.float16)
    views: Pipeline = {"crop": Crop(scale=settings.crop, size=subject.model.side), "flip": Flip()}
    classifier.train(not frozen)
    for step in range(steps):
        epoch, within = divmod(step, len(rows) // batch)
        if within == 0:
            order = rows[permutation(len(rows), seed, "classifier", epoch).numpy()]
        picked = order[within * batch : (within + 1) * batch]
        images = apply(torch.from_numpy(data.images[picked]).to(device), views, draw(views, batch, seed, step, 0))
        labels = torch.from_numpy(data.labels[picked]).to(device)
        torch.manual_seed(subseed(seed, "classifier network", step))  # of dropout and stochastic depth
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
def scores_of(classifier: Classifier, subject: Subject, part: str) -> Tensor:
    """Class scores of the whole images of a part, in float32."""
    images = whole_images(subject.data.images, subject.data.parts[part], subject.model)
    with whole_float32():
        return torch.cat([classifier(batch) for batch in images])


def best_rate(subject: Subject, rows: Array, settings: Sgd, seed: int, *, frozen: bool) -> tuple[float, Classifier]:
    """The learning rate whose classifier is best on validation, and that classifier; the first of equal ones."""
    truth, best, chosen = subject.labels("val"), -1.0, None
    for lr in settings.lr:
        classifier = fit(subject, rows, settings, lr, seed, frozen=frozen)
        score = accuracy(scores_of(classifier, subject, "val"), truth)
        if score > best:  # scores that are not finite give an accuracy all the same, of a low class
            best, chosen = score, (lr, classifier)
    assert chosen is not None
    return chosen


def linear_sgd(subject: Subject) -> Outcome:
    """The paper's probe: a linear classifier on the frozen encoder, trained by SGD on crops of the training images."""
    settings = subject.protocol.linear_sgd
    lr, classifier = best_rate(subject, subject.data.parts["train"], settings, 0, frozen=True)
    outcome = accuracies(scores_of(classifier, subject, "test"), subject.labels("test"), "linear_sgd")
    return outcome._replace(metrics=outcome.metrics | {"linear_sgd_lr": lr})


def finetune(subject: Subject) -> Outcome:
    """Test accuracy after training encoder and classifier on each fraction of the labels.

    The learning rate is picked on validation with the first seed; every seed then has its own labels, classifier,
    order and crops. The mean over the seeds is named finetune_1pct_top1, the standard deviation over them
    finetune_1pct_std; the predictions are the first seed's.
    """
    settings, data = subject.protocol.finetune, subject.data
    metrics: dict[str, float] = {}
    predictions: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    truth = subject.labels("test")
    for fraction in settings.fractions:
        name, found = f"finetune_{fraction * 100:g}pct", []
        for seed in range(settings.seeds):
            rows = label_subset(data.labels, data.parts["train"], fraction, seed)
            if len(rows) < 2:
                raise UserError(f"finetune.fractions = {fraction:g} leaves {len(rows)} labelled image: raise it")
            if seed == 0:
                lr, classifier = best_rate(subject, rows, settings, seed, frozen=False)
            else:
                classifier = fit(subject, rows, settings, lr, seed, frozen=False)
            scores = scores_of(classifier, subject, "test")
            result = accuracies(scores, truth, name)
            found.append(result.metrics)
            predictions = result.predictions | predictions
            for metric in result.metrics:
                right = hits(scores, truth, int(metric[-1])) / settings.seeds
                shares[metric] = shares[metric] + right if metric in shares else right
        metrics |= {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        metrics[f"{name}_lr"] = lr
        if settings.seeds > 1:
            metrics[f"{name}_std"] = float(np.std([one[f"{name}_top1"] for one in found], ddof=1))
    return Outcome(metrics, predictions, shares)
