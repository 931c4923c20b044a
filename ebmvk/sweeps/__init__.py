"""Tables of training runs, and searches beyond them.

| question | module |
|---|---|
| How is one run of a sweep started, continued and kept? | `planned` |
| Which runs does a table have, and what came out? | `experiments` |
| Which settings does a search try next? | `search` |
"""
