"""A run folder becomes one self-contained report.html: no script, no network, readable on a phone and in print."""

from aha.report.live import check_port, serve_live
from aha.report.page import render, write

__all__ = ["check_port", "render", "serve_live", "write"]
