"""The processes of one run, as torchrun starts them: rank 0 leads, the others follow.

Rank 0 is the program as ever: it parses, reads, decides, writes and prints. The others do what it tells them, a message
at a time, until it tells them to end, so that nothing is decided twice. With one process nothing here costs anything.
"""

from ebmvk.ranks.processes import ALONE, BUCKET, Handler, Ranks
from ebmvk.ranks.shares import WHOLE, Share

__all__ = ["ALONE", "BUCKET", "WHOLE", "Handler", "Ranks", "Share"]
