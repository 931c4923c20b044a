"""`python -m ebmvk`: the same as the `ebmvk` program."""

import sys

from ebmvk.cli.parsing import main

sys.exit(main())
