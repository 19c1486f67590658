"""Single runs: train, evaluate, compare, exchange."""
