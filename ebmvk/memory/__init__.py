"""A model's memory: splats as part of its exact token law.

- Reading with it: `law` (tiers, gate and model in one law), `episodic` (the text being read),
  `gate` (how much each tier weighs).
- Building it: `static` (splats of the training text), `fit` (concentrations, shares and gates),
  `calibration` (the baseline without memory), `alerts` (what went wrong), `while_training`
  (consolidation as part of training).
- Keeping it: `files` (beside the weights), `fitted_on` (which text it was fitted on).
"""
