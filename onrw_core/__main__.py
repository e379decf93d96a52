"""``python -m onrw_core`` is the command `onrw`."""

import sys

from .commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
