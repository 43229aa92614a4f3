"""``python -m space.families [--write] [TYPE ...]``: print or write the table of supported model types."""

from __future__ import annotations

import sys

from space.families.support import main

if __name__ == "__main__":
    sys.exit(main())
