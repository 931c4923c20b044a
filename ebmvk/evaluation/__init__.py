"""Figures of trained models: likelihood, comparison of decoding strategies, score matching.

| question | module |
|---|---|
| What does `ebmvk evaluate` measure? | `measurement` |
| How likely is a text, exactly? | `likelihood` |
| Is a difference between two models more than chance? | `intervals` |
| How well does the model remove noise from a state? | `score_matching` |
| Which decoding strategy is closest to human text? | `comparison` |
| What does lm-evaluation-harness ask, and how is it answered? | `harness_model`, `requests` |
"""
