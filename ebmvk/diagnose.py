"""`python -m ebmvk.diagnose`, and `ebmvk.diagnose(...)` in Python. The command itself is
`ebmvk.cli.diagnose`."""

import sys

from ebmvk.cli.calling import callable_module
from ebmvk.cli.diagnose import diagnose, main

if __name__ == "__main__":
    sys.exit(main())
callable_module(__name__, diagnose)
