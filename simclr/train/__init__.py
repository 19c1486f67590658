"""Training: one step, the loop, and the memory that a step needs."""
