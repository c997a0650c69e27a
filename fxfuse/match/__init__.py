"""Finding sites: complete search, safety gates, selection; reasons as data."""

from fxfuse.match.finding import Found, find_sites, place_around
from fxfuse.match.matching import Match
from fxfuse.match.reasons import CODES, Failure
from fxfuse.match.regions import sites_of
from fxfuse.match.select import select

__all__ = ["CODES", "Failure", "Found", "Match", "find_sites", "place_around", "select", "sites_of"]
