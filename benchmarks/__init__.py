"""Speed and memory, measured beside alternatives in one run so that both see the same machine."""
