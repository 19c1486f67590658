"""How well images of the same class are found: mean average precision over test images as queries."""

from __future__ import annotations

import torch
from torch import Tensor

from simclr.evaluate.base import Evaluation, Outcome
from simclr.evaluate.subject import Subject
from simclr.randomness import permutation
from simclr.settings import Count, Seed

PAIRS = 2**22  # of queries and gallery images that are ranked at once, which takes about 200 MiB


@torch.no_grad()
def average_precisions(gallery: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> Tensor:
    """The average precision of each query (Q x D), whose class is in `truth`, in a gallery (M x D) with M labels.

    The gallery is ranked by cosine similarity, and what has the class of the query is right. Images that are equally
    similar share the last of their places, as in scikit-learn. It is nan for a class that the gallery lacks.
    """
    norms, places = gallery.norm(dim=1).clamp(min=1e-12), torch.arange(len(gallery), device=gallery.device)
    size, found = max(1, PAIRS // max(1, len(gallery))), []
    for block, y in zip(queries.split(size), truth.split(size), strict=True):
        similarity, order = (block @ gallery.T / norms).sort(dim=1, descending=True)
        right = labels[order] == y.unsqueeze(1)
        last = torch.ones_like(right)
        last[:, :-1] = similarity[:, :-1] != similarity[:, 1:]
        end = torch.where(last, places, len(gallery) - 1).flip(1).cummin(1).values.flip(1)
        precision = right.cumsum(1).gather(1, end) / (end + 1)
        found.append((precision * right).sum(1) / right.sum(1))
    return torch.cat(found)


def expected_precision(relevant: Tensor, total: int) -> Tensor:
    """The average precision that a random ranking is expected to have, of each of some numbers of relevant images.

    Of `total` images, R are relevant. If one is at place i, the precision there is expected to be
    (1 + (i - 1) (R - 1) / (total - 1)) / i, of which this is the mean over all places.
    """
    harmonic = (1 / torch.arange(1, total + 1, dtype=torch.float64)).sum()
    return (harmonic + (relevant - 1) / max(1, total - 1) * (total - harmonic)) / total


class Retrieval(Evaluation):
    """Test images are queries for the training and validation images of their class, by cosine similarity.

    The metric is the mean over the queries of their average precision over the whole ranking. Its interval is over the
    queries. Images of a class that has no training image are left out.
    """

    section_name = "retrieval"
    takes_crops = True
    scales_features = True

    queries: Count = 10_000  # largest number of test images that are queries, drawn at random
    seed: Seed = 0  # seed of the draw

    def chance(self, subject: Subject) -> tuple[dict[str, float], int]:
        """What a random ranking is expected to have, and the number of queries."""
        labels = torch.cat([subject.labels("train"), subject.labels("val")]).cpu()
        truth = subject.labels("test").cpu()[self._rows(subject)]
        relevant = labels.bincount(minlength=len(subject.data.classes))[truth]
        relevant = relevant[relevant > 0]
        return {"map": expected_precision(relevant, len(labels)).mean().item()}, len(relevant)

    def _rows(self, subject: Subject) -> Tensor:
        return permutation(len(subject.data.parts["test"]), self.seed, "retrieval")[: self.queries]

    def run(self, subject: Subject) -> Outcome:
        """Mean average precision (retrieval_map), in [0, 1]."""
        (train, train_y), (val, val_y), (test, test_y) = subject.train, subject.val, subject.test
        rows = self._rows(subject).to(test.device)
        found = average_precisions(torch.cat([train, val]), torch.cat([train_y, val_y]), test[rows], test_y[rows])
        found = found[~found.isnan()].cpu()
        return Outcome({"retrieval_map": found.mean().item()}, samples={"retrieval_map": found.tolist()})
