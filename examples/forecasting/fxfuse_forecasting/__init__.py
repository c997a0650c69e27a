"""Patterns of forecasting models for fxfuse. Each module at this level is a page, which fxfuse imports by itself."""
