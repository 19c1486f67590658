"""The training loop, and the memory that it needs."""
