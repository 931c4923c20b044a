"""Text: everything between the name that a user types and the batches of token ids.

- Finding it: `datasets` (what `--dataset` means), `published` (corpora known by name), `documents`
  (text without splits), `corpus` (documents in splits).
- Reading it: `files` (one file), `folders` (many files), `formats` (files that aren't plain text),
  `splitting` (documents and held-out text), `cleaning` (repairs and repetitions).
- Token ids: `tokenizer`, `tokenizer_kinds` (what `--tokenizer` makes), `foreign` (a tokenizer.json
  from elsewhere), `fidelity` (does a text survive the way to tokens and back?), `windows` (streams,
  batches and evaluation windows).
- Judging it: `analysis` (how to train on it), `ngram` (the trigram that a model should beat).
"""
