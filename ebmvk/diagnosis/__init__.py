"""What `ebmvk diagnose` finds out about a checkpoint.

| module | what is in it |
|---|---|
| `diagnosis` | which sections there are; runs them, and sets several checkpoints side by side |
| `subject` | a checkpoint with the text it is diagnosed on, and how much of that is read |
| `likelihood` | exact perplexity, also by how frequent a token is in the training text |
| `course` | energy per epoch; has the run converged? |
| `verdict` | the test behind that verdict |
| `chains` | denoising by noise level; Langevin chains and other samplers against p(v|c) |
| `splats` | what is dead, double, used; their map, and the tokens near them |
| `memory` | what the gate lets through, and what memory is worth |
| `writing` | samples beside human text; attention and experts |
| `recommendations` | what to do about it: a flag and a value |

Each section is JSON-able, or `Absent` with the reason where it makes no sense for a model.
"""
