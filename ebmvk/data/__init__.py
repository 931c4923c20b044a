"""Text: from what a person names to batches of token ids.

Find a corpus: `datasets` (what `--dataset` means), `published` (corpora known by name), `documents`
(text without splits), `corpus` (documents in splits). Read it: `files` (one file), `folders`
(many), `formats` (what isn't text), `splitting` (documents and held-out text), `cleaning`
(repairs). Turn it into ids: `tokenizer`, `foreign` (a tokenizer.json from elsewhere), `fidelity`
(does a text survive?), `windows` (streams and batches). Judge it: `analysis` (what to train on it),
`ngram` (the trigram to beat).
"""
