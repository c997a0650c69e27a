"""The standard library of patterns, installed as `fxfuse_patterns`: one pattern, one page."""
