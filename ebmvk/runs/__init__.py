"""Run folders and their files: written safely, found again, and verified when they are read.

| question | module |
|---|---|
| Where is a run, and what are its files called? | `layout` |
| How do I open a trained run, or check that a checkpoint fits it? | `folder` |
| What is in a checkpoint? Saving and loading one | `checkpoint` |
| What does a checkpoint's state.json say? | `manifest` |
| Which checkpoints does a run have, and which are latest and best? | `steps` |
| How does nested optimiser state become tensors and JSON? | `packing` |
| How is a file written so that a crash loses nothing? | `atomic` |
| Can this file be trusted? | `verified` |
| Is another process writing into this folder? | `lock` |
| How far has a run come? What has it measured? | `progress`, `metrics` |
| Where is the text of a run, and is it still the text of the training? | `text` |
| How is a model exported, and an exported one read? | `export`, `hub` |
| Which figures of an older run are wrong? | `known_faults` |
"""
