"""``python -m space.families [--write] [TYPE ...]``: the table of what can be cut of which type."""

from __future__ import annotations

import sys

from space.families.support import main

if __name__ == "__main__":
    sys.exit(main())
