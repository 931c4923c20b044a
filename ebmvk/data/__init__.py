"""Text: everything between the name that a user types and the batches of token ids.

- Finding text: `datasets` (what `--dataset` means), `published` (corpora known by name),
  `documents` (text without splits), `corpus` (documents in splits).
- Reading text: `files` (one file), `folders` (many files), `formats` (files that aren't plain
  text), `splitting` (documents and held-out text), `cleaning` (repairs and repetitions).
- Token ids: `tokenizer`, `tokenizer_kinds` (what `--tokenizer` makes), `foreign` (a tokenizer.json
  from elsewhere), `fidelity` (does a text stay the same when it is encoded and decoded?), `windows`
  (streams, batches and evaluation windows).
- Judging text: `analysis` (how to train on it), `ngram` (the trigram that a model should beat).
"""
