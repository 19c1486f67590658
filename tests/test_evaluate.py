from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from conftest import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from simclr import evaluate as ev
from simclr.data import Dataset
from simclr.errors import UserError
from simclr.model import build_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clusters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping classes: train features and labels, test features and labels."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=draw)
    y = torch.arange(600) % 5
    x = centres[y] + 1.2 * torch.randn(600, 16, generator=draw)
    return x[:400], y[:400], x[400:], y[400:]


@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_predicts_what_scikit_learn_predicts_with_the_same_weights(k: int, clusters) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries, _ = clusters
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank.numpy(), labels.numpy())
    mine = ev.knn_predict(bank, labels, queries, 5, [k], 0.1)[k]
    assert mine.tolist() == peer.predict(queries.numpy()).tolist()


def test_several_k_in_one_pass_equal_each_alone_and_blocks_change_nothing(
    clusters,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    bank, labels, queries, _ = clusters
    together = ev.knn_predict(bank, labels, queries, 5, [5, 50, 10**6])
    monkeypatch.setattr(ev, "BLOCK", 7)
    for k, predicted in together.items():
        assert torch.equal(predicted, ev.knn_predict(bank, labels, queries, 5, [k])[k])


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_the_linear_classifier_finds_scikit_learns_optimum(l2: float, clusters) -> None:  # type: ignore[no-untyped-def]
    x, y, test, _ = clusters
    weights = ev.fit_logistic(x, y, x.new_zeros(17, 5), l2, iterations=1000)
    peer = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(np.vstack([peer.coef_.T, peer.intercept_]))

    def objective(w: torch.Tensor) -> float:
        scores = ev.logits(x.double(), w.double())
        return (torch.nn.functional.cross_entropy(scores, y, reduction="sum") + l2 / 2 * w[:-1].square().sum()).item()

    assert objective(weights) == pytest.approx(objective(theirs), rel=1e-3)  # float32 against float64
    assert (ev.logits(test, weights).argmax(1).numpy() == peer.predict(test.numpy())).mean() > 0.99


def test_the_l2_value_is_chosen_on_validation_and_noise_asks_for_a_strong_one(clusters) -> None:  # type: ignore[no-untyped-def]
    x, y, test, test_y = clusters
    noise = torch.randn(600, 300, generator=torch.Generator().manual_seed(1))
    wide, held = torch.cat([x, 5 * noise[:400]], 1), torch.cat([test, 5 * noise[400:]], 1)
    weights, l2 = ev.linear_classifier(wide[:300], y[:300], wide[300:], y[300:], 5)
    assert l2 > 10
    scores = ev.logits(ev.standardise(wide[:300], held)[1], weights)
    unregularised = ev.fit_logistic(ev.standardise(wide[:300])[0], y[:300], wide.new_zeros(317, 5), 1e-6)
    assert ev.accuracy(scores, test_y) > ev.accuracy(
        ev.logits(ev.standardise(wide[:300], held)[1], unregularised), test_y
    )


def test_accuracy_counts_the_k_highest() -> None:
    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    assert ev.accuracy(scores, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)
    assert ev.accuracy(scores, torch.tensor([0, 0, 0]), 2) == pytest.approx(2 / 3)
    assert ev.accuracy(scores, torch.tensor([0, 0, 0]), 5) == 1


def test_evaluating_changes_no_weight_and_no_buffer(digits: Dataset) -> None:
    model = build_model(tiny(), digits, CPU).train()

    def state() -> str:
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()

    before = state()
    score = ev.evaluate(model, digits, knn=True, linear=False)
    assert state() == before
    assert model.training
    assert 0 <= score.metrics["knn_top1"] <= 1


def test_features_do_not_depend_on_their_neighbours_in_a_batch(digits: Dataset) -> None:
    model = build_model(tiny(), digits, CPU)
    rows = digits.parts["test"][:20]
    together = ev.features(model, digits.images, rows, torch.float32)
    alone = torch.cat([ev.features(model, digits.images, rows[i : i + 1], torch.float32) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_random_encoder_has_sane_activations_and_the_config_s_weights(digits: Dataset) -> None:
    model = ev.random_encoder(tiny(), digits, CPU)
    untrained = build_model(tiny(), digits, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True))
    h = ev.features(model, digits.images, digits.parts["test"], torch.float32)
    assert 0.05 < h.std() < 20
    norm = model.encoder.bn1  # type: ignore[union-attr]
    assert norm.running_var.mean() != 1


def test_pixels_of_digits_are_classified_as_well_as_scikit_learn_does_it(digits: Dataset) -> None:
    flat = torch.from_numpy(digits.images[:, 0].reshape(len(digits.images), -1).astype(np.float32))
    parts = {name: torch.from_numpy(rows) for name, rows in digits.parts.items()}
    y = torch.from_numpy(digits.labels)
    train, val, test = (flat[parts[p]] for p in ("train", "val", "test"))
    weights, l2 = ev.linear_classifier(train, y[parts["train"]], val, y[parts["val"]], 10)
    mine = ev.accuracy(ev.logits(ev.standardise(train, test)[1], weights), y[parts["test"]])
    x, held, z = ev.standardise(train, val, test)
    peer = LogisticRegression(C=1 / l2, max_iter=2000).fit(
        torch.cat([x, held]), y[torch.cat([parts["train"], parts["val"]])]
    )
    assert mine == pytest.approx(peer.score(z, y[parts["test"]]), abs=0.006)  # two images of 359


def test_data_without_labels_says_what_it_needs(digits: Dataset) -> None:
    from dataclasses import replace

    bare = replace(digits, classes=(), parts=digits.parts | {"train": digits.parts["train"][:0]})
    with pytest.raises(UserError, match="need at least two folders"):
        ev.evaluate(build_model(tiny(), digits, CPU), bare, knn=True, linear=True)
