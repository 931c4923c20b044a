"""`python -m ebmvk.generate`. The command itself is `ebmvk.cli.generate`."""

import sys

from ebmvk.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
