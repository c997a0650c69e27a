"""Soundness fuzz: random programs, rewritten by fxfuse and compared with eager PyTorch. See ``__main__``."""
