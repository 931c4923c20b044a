"""`python -m ebmvk.evaluate`, and `ebmvk.evaluate(...)` in Python. The command itself is
`ebmvk.cli.evaluate`."""

import sys

from ebmvk.cli.calling import callable_module
from ebmvk.cli.evaluate import evaluate, main

if __name__ == "__main__":
    sys.exit(main())
callable_module(__name__, evaluate)
