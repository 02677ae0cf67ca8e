"""``python -m probmix`` is the command ``probmix``."""

from __future__ import annotations

import sys

from probmix.cli import main

if __name__ == "__main__":
    sys.exit(main())
