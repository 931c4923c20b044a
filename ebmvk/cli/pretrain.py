"""`ebmvk pretrain`: a first stage that trains embeddings and trunk only.

It trains p(v|c) = softmax(s mu_v.h + b_v): the state is compared with the tokens directly, without
decoder, composition, scales or denoising. `ebmvk train --init RUN` starts the whole model from the
run that this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ebmvk.cli.train import FLAGS as TRAIN_FLAGS
from ebmvk.cli.train import main as train

FLAGS = TRAIN_FLAGS
# Defaults of this stage; flags and a file override them.
STAGE = {"decoder": "none", "use_geometric": False, "use_compositional": False, "lambda_denoise": 0.0}


def main(argv: Sequence[str] | None = None) -> int:
    """The same exit status as `ebmvk train`."""
    return train(argv, command="pretrain", stage=STAGE)


if __name__ == "__main__":
    sys.exit(main())
