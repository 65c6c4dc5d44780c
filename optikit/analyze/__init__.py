"""What the curvature says about a point, and about the points that many starts lead to."""

from optikit.analyze.certificate import Certificate, Kind
from optikit.analyze.certify import certify, certify_many
from optikit.analyze.inference import ParameterCovariance, parameter_covariance
from optikit.analyze.multi_start import MultiStart, multi_start

__all__ = [
    "Certificate",
    "Kind",
    "MultiStart",
    "ParameterCovariance",
    "certify",
    "certify_many",
    "multi_start",
    "parameter_covariance",
]
