"""The processes of one run, as torchrun starts them: rank 0 leads, the others follow.

Rank 0 parses, reads, decides, writes and prints, as in a run of one process. The other ranks do
what it tells them, message by message, until it tells them to end. So each decision is made only
once. A run of one process pays nothing for this.

| question | module |
|---|---|
| How do the processes meet, and how do they exchange messages and tensors? | `processes` |
| Which rows of a step does a rank compute? | `shares` |
| Why doesn't a rank answer? | `failures` |
"""

from ebmvk.ranks.processes import ALONE, BUCKET, Handler, Ranks
from ebmvk.ranks.shares import WHOLE, Share

__all__ = ["ALONE", "BUCKET", "WHOLE", "Handler", "Ranks", "Share"]
