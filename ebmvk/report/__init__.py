"""Tables, pictures and pages.

| module | what is in it |
|---|---|
| `section` | what a page consists of, as data |
| `charts`, `drawing`, `svg` | charts as data, and how they are drawn |
| `tables`, `series` | figures as people read them; smoothed and thinned curves |
| `trigram` | which is better, a model or the trigram |
| `page`, `glossary` | renders a page, and explains its terms |
| `run_page`, `run` | the report of a run, and its sections |
| `shared` | what the report of a run and the diagnosis both show |
| `certificate`, `model_card` | pictures of a certification; the card of an exported model |
"""
