"""Writing text with a trained model.

| module | what is in it |
|---|---|
| `strategies` | settings such as temperature and top-p, and the named strategies of `--strategy` |
| `filters` | what each setting does to the probabilities of the next token |
| `generate` | `Generator`: continues prompts token by token |
| `layers` | which device runs the layers that read or write a text |
| `texts` | a text while it is being written, and when it is finished |
| `reading` | feeds texts to the model, so that it reads each position once |
| `probe` | samples that a training run writes now and then |
| `metrics` | how much texts repeat themselves, and how diverse they are |
"""
