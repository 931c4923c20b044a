"""Training: from a job to a finished run.

`cli.train` turns flags into a `job.Job`; `session.execute` does everything else.

| module | contents |
|---|---|
| `session` | one run from beginning to end: set up or restore, train, evaluate, report |
| `job` | what to do, and the settings that follow from the tokenizer and the text |
| `trainer` | the loop: steps, evaluations, checkpoints |
| `passes` | one step as a number of batches |
| `optim`, `adamw`, `muon` | the optimisers and the learning rate schedule |
| `step`, `update` | a step, and its update, as pure functions that torch can trace |
| `evaluations` | measurements during a run and at its end |
| `reduction`, `follower` | several processes: what they share, and the processes after the first |
| `resumption`, `recovery`, `interruption` | continue a run; errors that end it; signals |
| `finite` | finds the first tensor that isn't finite |
| `rehearsal` | `--dry-run` |
| `summary`, `lines` | what a run prints |
"""
