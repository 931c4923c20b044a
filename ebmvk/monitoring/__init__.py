"""Watches a run while it trains.

| module | what is in it |
|---|---|
| `monitor` | records a run in metrics.jsonl and TensorBoard, shows it, raises alerts |
| `display` | the line of progress on a terminal, plain lines elsewhere |
| `alerts` | warns once about each symptom of a failing run |
| `advice` | what to change after a run with a poor result |
| `tensorboard` | writes the numbers of metrics.jsonl for TensorBoard |
"""
