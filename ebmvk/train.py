"""`python -m ebmvk.train`, and `ebmvk.train(...)` in Python. The command itself is
`ebmvk.cli.train`."""

import sys

from ebmvk.cli.calling import callable_module
from ebmvk.cli.train import main, train

if __name__ == "__main__":
    sys.exit(main())
callable_module(__name__, train)
