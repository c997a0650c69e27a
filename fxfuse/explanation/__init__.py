"""`fxfuse explain`: reports of scripts and of models, as text for a terminal."""
