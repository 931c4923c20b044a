"""What `ebmvk diagnose` finds out about a checkpoint.

| module | what is in it |
|---|---|
| `diagnosis` | the list of sections; measures them all; joins several checkpoints in one record |
| `subject` | a checkpoint with the text it is diagnosed on, and how much of that is read |
| `likelihood` | exact perplexity, also by how frequent a token is in the training text |
| `course` | energy per epoch; has the run converged? |
| `verdict` | the test behind that verdict |
| `chains` | denoising by noise level; Langevin chains and other samplers against p(v|c) |
| `splats` | which splats are dead, duplicate, used; their map, and the tokens near them |
| `memory` | how much the gate lets through, and what memory gains |
| `writing` | experts and attention; samples compared with human text |
| `recommendations` | what to do about it: a flag and a value |
| `overview` | a diagnosis as lines for a terminal; several checkpoints in one table |
| `compared` | pictures of several checkpoints |
| `page` | the page |

A section is measured and shown in the same module, which lists it in its `SECTIONS`. What it
measures can be written as JSON; it is `Absent`, with a reason, if it makes no sense for a model.
"""
