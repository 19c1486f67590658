"""Speed and memory, measured in one run so that a machine's drift cancels."""
