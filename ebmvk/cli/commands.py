"""The commands of the `ebmvk` program, a line each: the name of its module in this package, and what it does."""

from __future__ import annotations

COMMANDS = {
    "train": "train a model on text; writes a run folder with checkpoints, metrics and a report",
    "pretrain": "train embeddings and trunk alone; `ebmvk train --init RUN` goes on with the whole model",
    "evaluate": "exact likelihood of a text: perplexity per token and word, bits per byte",
    "memory": "give a checkpoint its memory: static splats of the training text, and the gates of both tiers",
    "prepare-corpus": "text files repaired, normalised, without repeats, put together for training",
    "analyze-corpus": "what a corpus is like: tokens, documents, and what to train on it",
    "init-tokenizer": "a tokenizer of one's own, for --tokenizer FILE",
    "sweep": "a table of training runs with verdicts, resumable and parallel, and a search beyond it",
    "doctor": "devices and drivers of this machine, and every operation compared with a float64 oracle",
    "certify": "are the samplers right? twelve tests with p-values, and broken samplers that they must catch",
    "diagnose": "what is well with a checkpoint, what is not, and what to do about it; several side by side",
    "generate": "write text by annealed Langevin sampling, or by exact sampling",
    "export": "a checkpoint as a folder laid out as model hubs have them, with a card of exact figures",
    "harness": "tasks of lm-evaluation-harness, an extra; flags that are not listed are lm_eval's: --tasks, --limit …",
    "compare-decoding": "decoding strategies by repetition, diversity, perplexity and speed, beside human text",
    "attention": "what each head looks at, and what experts specialise in, as pictures and figures",
    "embed": "texts as points on the sphere, and their exact energies",
    "compose": "the point that the model composes of two texts",
    "neighbors": "the tokens, and splats of the memory, nearest to a text",
}


TOGETHER = ("train", "pretrain", "evaluate")
"""Commands that several processes of torchrun do together."""
