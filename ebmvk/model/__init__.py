"""Language models, and the parts they are built of.

| module | what is in it |
|---|---|
| `build` | a model from its settings; `ebmvk.config.models` lists the models |
| `language` | what every model offers: `LanguageModel`, its output, its own losses |
| `ebm` | the energy model; its parts are `context`, `decoder` and `energy` |
| `transformer`, `infinito` | the other models |
| `layers`, `experts`, `dropout` | attention and blocks, mixtures of experts, dropout |
| `grouped`, `constants` | experts on sorted rows; tensors that follow from settings alone |
| `integration` | integrated information, for the loss of infinito |
| `cache`, `static_cache` | what a model keeps of the tokens it has read, in torch and in programs |
| `positions` | what a position may look at, and rotary angles |
| `token_layers`, `tokens_on_device` | reading each token once, in torch and in programs |
| `roles` | how the optimiser moves each kind of parameter |
| `reading`, `inspection` | reading a text; attention maps and the tokens of experts |
"""
