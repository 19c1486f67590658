"""Evaluate a frozen encoder. To add an evaluation, write its file and add a line to EVALUATIONS in evaluations.py."""
