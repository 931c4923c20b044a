"""The sections of a run's report, each measured from the run folder and shown in one place.

| module | what is in it |
|---|---|
| `source` | a run folder as the sections read it |
| `summary` | whether the run beats the trigram; alerts; what to do next |
| `likelihood` | exact figures |
| `curves` | the course of training, step by step |
| `model` | the trained model: denoising, attention, experts |
| `record` | samples, engine operations, machine, settings |
"""
