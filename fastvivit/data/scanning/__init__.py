"""A folder of videos or images to a manifest, each file decoded once."""

from fastvivit.data.scanning.result import Broken, ScanResult
from fastvivit.data.scanning.scan import scan

__all__ = ["Broken", "ScanResult", "scan"]
