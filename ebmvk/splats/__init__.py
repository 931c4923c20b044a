"""Memory splats: blobs on the sphere that sum up many contexts and the tokens that followed them.

- What they are: `store` (their statistics, and what is derived from them), `recall` (what they say
  about a context), `coverage` (how much of a text they explain).
- How they arise: `build` (clustering a text at once), `creation` (new ones, and splitting),
  `consolidation` (merging), `curriculum` (how many, and how sharp).
- During training: `history` (the last states), `soc` (the whole process), `health` (its figures).
"""
