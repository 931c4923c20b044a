"""`python -m ebmvk.memory` runs the command `ebmvk memory`."""

import sys

from ebmvk.cli.memory import main

sys.exit(main())
