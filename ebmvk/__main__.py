"""`python -m ebmvk`: the same as the `ebmvk` program."""

import sys

from ebmvk.cli.app import main

sys.exit(main())
