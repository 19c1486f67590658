"""SimCLR: a Config in, numbers and weights out.

`load_encoder` and `Encoder` are imported when they are asked for: torch, which they need, takes seconds.
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
