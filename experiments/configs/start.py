"""Find the weights that a config starts from, and the network that it learns from: in files, or those of runs."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.tracking.starts import where_now
from simclr.config import Config
from simclr.errors import UserError
from simclr.methods import METHODS

GONE = "To resume a run whose starting weights are gone, give its config.toml as --config"


def with_weights(config: Config) -> Config:
    """The config with the files that `init` and the method's `teacher` name, and the digests of their tensors.

    Those that have both stay as they are, except for a starting file that was moved together with the home. Raises
    UserError if one names neither a file nor a finished run that has what it needs, and if `init` holds another
    network.
    """
    kind, settings = METHODS[config.method], config.method_settings()
    teacher: str | None = settings.teacher if kind.takes_teacher else None  # type: ignore[attr-defined]
    if config.init is None and teacher is None:
        return config
    from experiments.tracking.local import named_home
    from simclr.train.teacher import FILE, HOW, load_teacher  # importing torch's networks takes a second
    from simclr.weights.start import resolved, split_digest

    if config.init is not None and split_digest(config.init)[1] is None:
        config = resolved(config, _find("init", config.init, "model.safetensors", GONE))
    elif config.init is not None:
        config = config.model_copy(update={"init": where_now(config.init, Path(named_home()).resolve())})
    if teacher is not None and split_digest(teacher)[1] is None:
        path = str(_find(f"{kind.section_name}.teacher", teacher, FILE, f"K{HOW[1:]}"))
        named = {"teacher": f"{path}@{load_teacher(path)[2]}"}
        config = config.model_copy(update={kind.section_name: settings.model_copy(update=named)})
    return config


def _find(setting: str, name: str, kept: str, remedy: str) -> Path:
    """The file with this name, or the file `kept` of the run with this name, or else a network of torchvision.

    Raises UserError with the remedy.
    """
    if os.path.isfile(name):  # noqa: PTH113 (Path raises for a name that is too long for a file)
        return Path(name).resolve()
    from experiments.tracking.naming import may_be_file
    from experiments.tracking.store import Store, home

    store = Store(home())
    try:
        return store.find(name).artifact(kept)
    except UserError as error:
        from torchvision.models import list_models

        from simclr.weights.start import cached_weights

        if setting == "init" and name in list_models():
            return cached_weights(name)
        if may_be_file(name) and not any(record.is_called(name) for record in store.records()):
            missing = f"{setting} = '{name}': there is no such file, and no run has that name. {remedy}"
            raise UserError(missing) from None
        raise UserError(
            f"{setting} = '{name}' is neither a file nor a finished run that has one: {error}. {remedy}"
        ) from None
