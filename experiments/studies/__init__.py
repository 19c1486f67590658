"""Ablation studies: plan, run, report."""
