"""SimCLR and related methods: from a Config to trained weights and their evaluation.

`load_encoder` and `Encoder` are imported on first use, because importing torch takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr.weights.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from simclr.weights import encoder

    return getattr(encoder, name)
