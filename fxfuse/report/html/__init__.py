"""A report as one self-contained HTML page."""

from fxfuse.report.html.page import page

__all__ = ["page"]
