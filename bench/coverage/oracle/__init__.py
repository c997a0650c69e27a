"""An oracle independent of the matcher: what one eager call of a model contains, by module tree, source and values."""

from bench.coverage.oracle.counting import present
from bench.coverage.oracle.recording import Recording, record

__all__ = ["Recording", "present", "record"]
