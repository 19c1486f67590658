"""Find image files by their names as tables write them: with or without folders and suffixes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


class Names:
    """Finds files by their names as tables write them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        ends = [(end, name) for name in names for end in _ends(name)]
        self._whole = _by_key([(name, name) for name in names]) | {name: (name,) for name in names}
        self._ends = _by_key(ends) | self._whole

    def find(self, text: str) -> tuple[str, ...]:
        """The file of this name, with or without its suffix; the first two if several files have it.

        The text may lack leading folders of the file's name, or have additional ones. Case and the Unicode form of
        accents may differ, if only one file matches then.
        """
        own, *shorter = _ends(text.replace("\\", "/"))
        if found := self._ends.get(own, self._ends.get(_plain(own))):
            return found
        keys = (key for end in shorter for key in (end, _plain(end)))
        return next((self._whole[key] for key in keys if key in self._whole), ())


def _ends(name: str) -> list[str]:
    """A name, and the names without its first folder, its first two, and so on."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name


def _plain(name: str) -> str:
    """A name without what differs between systems: capitals, and the form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _by_key(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The names of each key, at most two: by keys as they are, without suffix and by `_plain`."""
    stems = [(_stem(key), name) for key, name in pairs]
    plain = [(_plain(key), name) for key, name in pairs]
    plain_stems = [(_plain(key), name) for key, name in stems]
    return _grouped(plain_stems) | _grouped(plain) | _grouped(stems) | _grouped(pairs)


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The first two names of each key."""
    found: dict[str, tuple[str, ...]] = {}
    for key, name in pairs:
        found[key] = (*found.get(key, ()), name)[:2]
    return found
