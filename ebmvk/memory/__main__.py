"""`python -m ebmvk.memory`: the command `ebmvk memory`.

The command is found by name, because a package below the commands must not import one.
"""

import importlib
import sys

sys.exit(importlib.import_module("ebmvk.cli.memory").main())
