"""What the curvature says about a point."""

from optikit.analyze.certify import Certificate, Kind, certify
from optikit.analyze.inference import ParameterCovariance, parameter_covariance

__all__ = ["Certificate", "Kind", "ParameterCovariance", "certify", "parameter_covariance"]
