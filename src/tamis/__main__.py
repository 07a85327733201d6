"""``python -m tamis`` is the command ``tamis``."""

import sys

from tamis.cli.main import main

sys.exit(main())
