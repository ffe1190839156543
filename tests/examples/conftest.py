"""Benchmarks and examples are not part of the installation; what is installed comes first."""

import sys

from support.paths import ROOT

sys.path.append(str(ROOT))
