"""`ebmvk pretrain`, `python -m ebmvk.pretrain`: embeddings and trunk as a stage of their own.

Training as ever, of p(v|c) = softmax(s mu_v.h + b_v): the state itself meets the tokens, without decoder, composition,
scales or denoising. `ebmvk train --init RUN` starts the full model from the run that this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ebmvk.cli.train import FLAGS as TRAIN_FLAGS
from ebmvk.cli.train import main as train

FLAGS = TRAIN_FLAGS
# Defaults of this stage; flags and a file can still say otherwise.
STAGE = {"decoder": "none", "use_geometric": False, "use_compositional": False, "lambda_denoise": 0.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as of `ebmvk train`."""
    return train(argv, command="pretrain", stage=STAGE)


if __name__ == "__main__":
    sys.exit(main())
