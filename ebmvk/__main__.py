"""`python -m ebmvk`: the same as the `ebmvk` program."""

import sys

from ebmvk.cli import main

sys.exit(main())
