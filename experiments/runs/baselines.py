"""Figures of untrained networks and of raw pixels, computed once and cached."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from math import nan

from experiments.tracking.store import Store
from simclr.config import RESULT_VERSION
from simclr.evaluate.base import are_unequal
from simclr.evaluate.evaluations import evaluate, get_evaluation
from simclr.evaluate.knn import Knn
from simclr.evaluate.protocol import identity
from simclr.evaluate.subject import Subject, hash_rows, model_fingerprint, random_encoder
from simclr.files import written_whole
from simclr.weights.start import Start, weights_digest

PIXELS = "pixels"  # the "layer" that is the normalised image itself
MOST_PIXELS = 2**30  # numbers in all images: 4 GiB in float32, which kNN copies once


def untrained_metrics(subject: Subject, name: str, store: Store, start: Start | None = None) -> dict[str, float]:
    """Metrics of the untrained network of the same config (or of raw pixels) under an evaluation.

    With `start`, its encoder has these weights. The metrics are computed once and then read from a cache. For
    fine-tuning, the untrained network is trained from scratch, or from `start`, on the same labels.
    """
    config, protocol = subject.config, subject.protocol
    pixels = protocol.layer == PIXELS
    reads = [config.model.model_dump(), config.seed, RESULT_VERSION] if not pixels else []
    reads += [subject.model.mean.flatten().tolist(), subject.model.std.flatten().tolist()]
    if start:
        reads += [weights_digest(start.weights)]
    elif not pixels:
        reads += _measured_by(subject)
    evaluation = get_evaluation(protocol, name)
    settings = [evaluation.model_dump()]
    protocol_id = identity(name, protocol, config, subject.data, subject.device)
    if evaluation.needs_labels and are_unequal(subject.labels("test")):
        reads.append("balanced")  # accuracy, which earlier versions didn't compute
    key = json.dumps([reads, settings, name, protocol_id], sort_keys=True)
    path = store.folder / "cache" / "baselines" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json"
    try:
        found = json.loads(path.read_text())
        return {str(metric): float(value) for metric, value in found.items()}
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, AttributeError) as error:
        subject.observer.say(f"the baseline {path} is damaged ({error}), so it is computed again")
    if not pixels:
        subject = replace(subject, model=random_encoder(subject))
        if start is not None:
            subject.model.encoder.load_state_dict(start.weights)
    metrics = evaluate(subject, name).metrics
    if not store.writable:
        return metrics
    with written_whole(path, "Free some space and run the command again") as scratch:
        scratch.write_text(json.dumps(metrics))
    return metrics


def _measured_by(subject: Subject) -> list[str]:
    """Digests of what sets an untrained network besides its config: its batch norms are measured on images."""
    filters = [subject.model.encoder.get_submodule("conv1")] if subject.config.model.stem == "whitening" else []
    return [hash_rows(subject.data.parts["pretrain"]), *map(model_fingerprint, filters)]


def pixel_accuracy(subject: Subject, store: Store) -> float:
    """Accuracy of kNN on raw pixels, with the protocol's first k.

    It runs on the CPU, which has more memory. nan if the images hold more than MOST_PIXELS numbers.
    """
    data, protocol = subject.data, subject.protocol
    if (len(data.parts["train"]) + len(data.parts["val"])) * 3 * data.side**2 > MOST_PIXELS:
        return nan
    knn = get_evaluation(protocol, "knn")
    assert isinstance(knn, Knn)
    knn = knn.model_copy(update={"k": knn.k[:1]})
    host = replace(
        subject,
        model=copy.deepcopy(subject.model).cpu(),
        protocol=protocol.model_copy(update={"layer": PIXELS, "knn": knn, "features": "raw"}),
    )
    return next(iter(untrained_metrics(host, "knn", store).values()))
