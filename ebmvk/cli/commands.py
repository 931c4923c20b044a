"""The commands of the `ebmvk` program. To add one: write its module in this package and give it a
line here.

`ebmvk some-name` runs `main(argv)` of the module `some_name`. The module also has `FLAGS`, the list
of all its flags.
"""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    "Train and look": {
        "train": "train a model on text; writes a run folder with checkpoints, metrics and a report",
        "pretrain": "train embeddings and trunk only; `ebmvk train --init RUN` continues with the whole model",
        "evaluate": "exact likelihood of a text: perplexity per token and word, bits per byte",
        "diagnose": "what is fine with a checkpoint, what is not, and what to change; can compare several",
        "attention": "pictures and figures of what each head looks at and what experts specialise in",
        "sweep": "train a table of runs, or search settings, and print verdicts; can resume and run in parallel",
        "harness": "run tasks of lm-evaluation-harness (an extra); also takes the flags of lm_eval",
    },
    "Write text": {
        "generate": "write text; on a terminal it asks for prompts",
        "compare-decoding": "repetition, diversity, perplexity and speed of decoding strategies",
        "embed": "turn texts into points on the sphere, with their exact energies",
        "compose": "the point that the model composes from two texts",
        "neighbors": "the tokens and memory splats that are nearest to a text",
        "export": "write a checkpoint in the layout of model hubs, with a model card",
    },
    "Memory": {
        "memory": "give a checkpoint its memory: clusters of the contexts of its training text",
    },
    "Corpora": {
        "prepare-corpus": "repair, normalise and deduplicate text files, and join them for training",
        "analyze-corpus": "size and content of a corpus, and what to train on it",
        "init-tokenizer": "train a tokenizer for --tokenizer FILE",
    },
    "Check": {
        "doctor": "test every operation on every device of this machine against a float64 oracle",
        "certify": "test the samplers: twelve tests with p-values, and broken samplers that they must catch",
    },
}
"""{title of a group: {command: what it does, in a line}}."""

COMMANDS: dict[str, str] = {name: what for group in GROUPS.values() for name, what in group.items()}

TOGETHER = ("train", "pretrain", "evaluate")
"""Commands that several processes of torchrun run together."""
