"""Keeps the libraries' advice out of the progress of a run; what fails is in the records."""

from __future__ import annotations

import logging
import warnings


def silence() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
