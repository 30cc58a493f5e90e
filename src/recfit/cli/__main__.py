"""`python -m recfit.cli`."""

import sys

from recfit.cli import main

sys.exit(main())
