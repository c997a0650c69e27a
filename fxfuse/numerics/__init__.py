"""Checks against float64: the numeric contract, and what compares a compiled model with eager PyTorch under it."""
