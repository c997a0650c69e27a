"""The pattern library over every language model that transformers ships: what is there, and what became of it."""
