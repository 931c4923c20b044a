"""What a run records, shows and warns about while it trains.

| module | what is in it |
|---|---|
| `monitor` | records every row, shows it, and raises alerts |
| `display` | one line of progress on a terminal, plain lines elsewhere |
| `alerts` | the symptoms of a failing run, and what to change |
| `advice` | what to change after a poor result |
| `tensorboard` | the same figures for TensorBoard |
"""
