"""simclr/progress.py."""

from __future__ import annotations

import inspect

from simclr.progress import Forwarding, Observer


def test_a_forwarding_observer_passes_everything_on() -> None:
    told: list[tuple[object, ...]] = []

    class Watch(Observer):
        def __getattribute__(self, name: str) -> object:
            return lambda *arguments: told.append((name, *arguments))

    names = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")]
    for name in names:
        arguments = list(inspect.signature(getattr(Observer, name)).parameters)[1:]
        getattr(Forwarding(Watch()), name)(*arguments)
        assert told.pop() == (name, *arguments)
    assert len(names) == 10
