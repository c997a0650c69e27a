"""What `fxfuse doctor` finds out, as plain data, and how it is shown."""
