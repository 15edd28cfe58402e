"""A run folder becomes one self-contained report.html: no script, no network, readable on a phone and in print."""

from aha.report.live import serve_live
from aha.report.page import render, write

__all__ = ["render", "serve_live", "write"]
