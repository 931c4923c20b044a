"""Pages for people: one HTML file each, without network or scripts.

| module | what is in it |
|---|---|
| `run_page`, `run` | the report of a run: the list of its sections, and the sections |
| `section`, `page` | what a page consists of, as data; turns it into HTML |
| `charts`, `drawing`, `svg`, `series` | charts as data, and how they are drawn |
| `tables`, `shared`, `glossary` | figures and tables, parts that several pages have, terms |
| `certificate`, `model_card` | pictures of a certification, the card of an exported model |

The sections of a diagnosis are in `ebmvk.diagnosis`.
"""
