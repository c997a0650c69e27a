"""What the editor raises where a site cannot be rewritten. The graph is then as it was."""

from __future__ import annotations


class RewriteError(Exception):
    """A replacement that does not fit its site. ``code`` is one of ``fxfuse.match.CODES``."""

    def __init__(self, message: str, code: str = "REWRITE_ERROR") -> None:
        super().__init__(message)
        self.code = code
