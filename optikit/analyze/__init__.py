"""What the curvature says about a point."""

from optikit.analyze.certify import Certificate, Kind, certify

__all__ = ["Certificate", "Kind", "certify"]
