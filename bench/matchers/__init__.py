"""fxfuse's matcher beside three others, on the same graphs: sites found, and time. See ``__main__``."""
