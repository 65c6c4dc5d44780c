"""What the curvature says about a point, and about the points that many starts lead to."""

from optikit.analyze.certificate import Certificate, Kind
from optikit.analyze.certify import certify, certify_many
from optikit.analyze.inference import ParameterCovariance, parameter_covariance
from optikit.analyze.instruments import Eigenpairs, Estimated, diagonal, eigenpairs, trace
from optikit.analyze.multi_start import MultiStart, multi_start
from optikit.analyze.spectrum import Density, Spectrum, spectrum

__all__ = [
    "Certificate",
    "Density",
    "Eigenpairs",
    "Estimated",
    "Kind",
    "MultiStart",
    "ParameterCovariance",
    "Spectrum",
    "certify",
    "certify_many",
    "diagonal",
    "eigenpairs",
    "multi_start",
    "parameter_covariance",
    "spectrum",
    "trace",
]
