"""``python -m fastvivit``."""

import sys

from fastvivit.cli import main

sys.exit(main())
