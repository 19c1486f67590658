"""The pre-training methods, one file each. To add one, write its file and add a line here."""

from __future__ import annotations

from simclr.methods.base import Method
from simclr.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {"simclr": SimCLR}
