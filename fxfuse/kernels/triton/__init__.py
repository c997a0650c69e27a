"""Kernels written in Triton. Only the modules in here import triton, so import them late."""
