"""Weights and features on disk."""
