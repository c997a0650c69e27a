"""Imported when a kernel runs, and never before."""
