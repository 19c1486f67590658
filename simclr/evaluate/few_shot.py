"""Classification by a few labelled images of each class, averaged over many draws of these images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.data.images import Array
from simclr.errors import UserError
from simclr.evaluate.base import Evaluation, Outcome, share_of_true
from simclr.evaluate.subject import Subject
from simclr.randomness import permutation
from simclr.settings import Count, Seed, Values

BLOCK = 8192  # test images whose similarities to the classes are in memory at once


def draw_shots(labels: Array, most: int, seed: int, draw: int) -> Array:
    """The numbers of `most` images of each class (classes x most), in a random order. Each class has as many."""
    return np.stack(
        [
            same[permutation(len(same), seed, "few-shot", draw, int(label)).numpy()[:most]]
            for label in np.unique(labels)
            for same in [np.flatnonzero(labels == label)]
        ]
    )


def nearest_mean(shots: Tensor, queries: Tensor) -> Tensor:
    """The class whose mean direction is nearest to each query (Q x D), given its images (classes x n x D).

    Directions are compared by cosine similarity. With one image of each class, this is its nearest neighbour.
    """
    means = F.normalize(F.normalize(shots, dim=2).mean(1), dim=1)
    return torch.cat([(block @ means.T).argmax(1) for block in queries.split(BLOCK)])


class FewShot(Evaluation):
    """Each test image gets the class whose few training images have the nearest mean direction.

    Nothing is chosen on validation, because that would need more labels. Accuracies are means over random draws of the
    training images, and their intervals are those of the means. The standard deviation says how much draws differ.
    """

    section_name = "few_shot"
    in_metric_names = frozenset({"shots"})
    takes_crops = True
    scales_features = True

    shots: Values[Count] = (1, 5, 10)  # numbers of labelled images per class; each gives an accuracy
    draws: int = Field(100, ge=3, le=100_000)  # number of draws of the images
    seed: Seed = 0  # seed of the draws

    def check(self, subject: Subject) -> None:
        """Raise UserError if a class has fewer training images than are drawn."""
        labels = subject.data.labels[subject.data.parts["train"]]
        names, counts = np.unique(labels, return_counts=True)
        if (most := max(self.shots)) > counts.min():
            rarest = subject.data.classes[int(names[counts.argmin()])]
            fitting = [shots for shots in self.shots if shots <= counts.min()] or [counts.min()]
            raise UserError(
                f"few_shot.shots = {most} needs {most} training images of each class, but '{rarest}' has "
                f"{counts.min()}: add --set few_shot.shots=[{','.join(map(str, fitting))}]"
            )

    def run(self, subject: Subject) -> Outcome:
        """Mean test accuracy for each number of shots (few_shot_5_top1), and its deviation (few_shot_5_std)."""
        (train, train_y), (test, test_y) = subject.train, subject.test
        labels, names = train_y.cpu().numpy(), train_y.unique()
        found: dict[int, list[float]] = {shots: [] for shots in self.shots}
        for draw in range(self.draws):
            rows = torch.from_numpy(draw_shots(labels, max(self.shots), self.seed, draw)).to(train.device)
            for shots, accuracies in found.items():
                predicted = names[nearest_mean(train[rows[:, :shots]], test)]
                accuracies.append(share_of_true(predicted == test_y))
            subject.observer.progress("draws of a few images", draw + 1, self.draws)
        samples = {f"few_shot_{shots}_top1": values for shots, values in found.items()}
        metrics: dict[str, float] = {}
        for name, values in samples.items():
            spread = float(np.std(values, ddof=1))
            metrics |= {name: float(np.mean(values)), f"{name.removesuffix('_top1')}_std": spread}
        return Outcome(metrics, samples=samples)
