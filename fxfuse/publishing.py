"""Where a compile's report goes by itself: one line in the log, torch's structured trace, a folder."""

from __future__ import annotations

import logging
import os
import time

from fxfuse import compat
from fxfuse.errors import warn_once
from fxfuse.options import Options
from fxfuse.report import Report
from fxfuse.report.history import is_collecting

log = logging.getLogger("fxfuse")

FOLDER = "FXFUSE_REPORT_DIR"


def will_be_read(options: Options) -> bool:
    """Whether somebody has asked for reports, so that whole graphs are worth their time."""
    asked = options.report_dir or os.environ.get(FOLDER)
    return bool(asked) or is_collecting() or compat.trace_is_on() or log.isEnabledFor(logging.DEBUG)


def publish(report: Report, options: Options) -> None:
    """Log one line (``TORCH_LOGS="+fxfuse"``: the whole report), and write the report where it was asked for."""
    log.info("%s", hinted(report))
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", report)
    if compat.trace_is_on():
        compat.trace_artifact("fxfuse_report", "string", report.__str__)
        compat.trace_artifact("fxfuse_report_json", "json", report.to_json)
    folder = options.report_dir or os.environ.get(FOLDER)
    if not folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        stem = os.path.join(folder, f"fxfuse-{os.getpid()}-{time.time_ns()}")
        for suffix in (".json", ".txt", ".html"):
            report.save(stem + suffix)
    except OSError as error:
        if options.on_error == "raise":
            raise
        warn_once(f"fxfuse cannot write its report to {folder!r}: {error}")


def hinted(report: Report) -> str:
    """The one line of a compile, with how to learn more where something was left."""
    left = any(outcome == "missed" for _, outcome in report.kinds)
    return report.summary() + ("; why: print(fxfuse.reports()[-1])" if left else "")
