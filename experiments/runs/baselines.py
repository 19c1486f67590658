"""Figures of untrained networks and of raw pixels, computed once and cached."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import replace
from math import nan

from experiments.tracking import Store
from simclr.config import METHOD
from simclr.errors import RunFailed
from simclr.evaluate.evaluations import EVALUATIONS, evaluate
from simclr.evaluate.subject import Subject, random_encoder

PIXELS = "pixels"  # the layer that stands for the normalised image itself


MOST_PIXELS = 2**30  # 4 GiB in float32, of which kNN makes a copy


def _baseline(subject: Subject, name: str, store: Store) -> dict[str, float]:
    """The metrics of the untrained network of the same config, or of raw pixels: computed once, then read from a file.

    For fine-tuning this is the same network trained from scratch on the same labels.
    """
    config, protocol = subject.config, subject.protocol
    pixels, sections = protocol.layer == PIXELS, EVALUATIONS[name].sections
    reads = [config.model.model_dump(), config.seed, METHOD] if not pixels else []
    reads += [subject.model.mean.flatten().tolist(), subject.model.std.flatten().tolist()]
    settings = [getattr(protocol, section).model_dump() for section in sections]
    key = json.dumps([reads, settings, name, subject.identity(sections)], sort_keys=True)
    path = store.folder / "cache" / "baselines" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json"
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    if not pixels:
        subject = replace(subject, model=random_encoder(subject))
    metrics = evaluate(subject, name).metrics
    scratch = path.with_suffix(f".{os.getpid()}.tmp")  # another process may be at the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(metrics))
        scratch.replace(path)
    except OSError as error:
        raise RunFailed(f"can't keep the baseline {path}: {error}; free some space") from error
    return metrics


def _pixels(subject: Subject, store: Store) -> float:
    """Accuracy of kNN on raw pixels, with the protocol's first k (at most as many as there are images).

    On the host, which has more memory; nan where they would take more than MOST_PIXELS.
    """
    data, protocol = subject.data, subject.protocol
    bank = len(data.parts["train"]) + len(data.parts["val"])
    if bank * 3 * data.side**2 > MOST_PIXELS:
        return nan
    knn = protocol.knn.model_copy(update={"k": (min(protocol.knn.k[0], bank),)})
    host = replace(
        subject,
        model=copy.deepcopy(subject.model).cpu(),
        protocol=protocol.model_copy(update={"layer": PIXELS, "knn": knn}),
    )
    (accuracy,) = _baseline(host, "knn", store).values()
    return accuracy
