"""Trained weights: checkpoints, encoders, and the formats of other programs."""
