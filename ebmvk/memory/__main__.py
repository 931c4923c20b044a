"""`python -m ebmvk.memory`: the command `ebmvk memory`."""

import sys

from ebmvk.cli.memory import main

sys.exit(main())
