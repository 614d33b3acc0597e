"""Pictures and pages made from results."""

from climafuse.report.maps import Layer, draw_map

__all__ = ["Layer", "draw_map"]
