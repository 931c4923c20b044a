"""`python -m ebmvk.memory`: the command `ebmvk memory`.

It is found by name, because a package below the commands imports none of them.
"""

import importlib
import sys

sys.exit(importlib.import_module("ebmvk.cli.memory").main())
