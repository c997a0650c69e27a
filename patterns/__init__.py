"""The standard library of patterns, installed as `fxfuse_patterns`: one pattern, one page."""

DEFAULTS = ("rms_norm_gated_mlp",)
"""The patterns that are active where the user names none; the others wait for measurements that say they pay."""
