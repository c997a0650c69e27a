"""Reports: one record format, from which text and JSON are made. Knows records, not engines."""

from fxfuse.report.history import keep, reports
from fxfuse.report.record import SCHEMA, Numbers, ReasonRecord, Report, Site

__all__ = ["SCHEMA", "Numbers", "ReasonRecord", "Report", "Site", "keep", "reports"]
