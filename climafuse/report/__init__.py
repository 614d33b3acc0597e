"""Pictures and pages made from results."""

from climafuse.report.maps import draw_map

__all__ = ["draw_map"]
