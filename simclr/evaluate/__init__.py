"""Evaluate a frozen encoder. To add an evaluation, see CONTRIBUTING.md."""
