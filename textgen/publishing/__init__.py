"""A checkpoint becomes a version, and perhaps the champion: the version in use.

- `gate`: decides whether a version is promoted. `contenders`: with what a challenger is compared, on
  which documents, and their losses.
- `verdict`: a decision in words and tables, which every place shows where a version stands beside the champion.
- `publish`: writes the next version, and moves the champion if the gate says so. A crash leaves one of the two in use.
- `candidate`, `version`: what may be published, and what was, with the decision about it.
- `registry`: the versions, the champion file, promotion and rollback by hand.
- `card`, `plots`, `lineage`: the model card and what is in it. `markdown`: any text in it, as Markdown shows it.
- `index`: data/index.json, what each folder is. `runs`: the trainings and versions, listed and found by their names.
  `curves`: the loss on the way, over tokens and over seconds.
- `drift`: how far a new text is from that of the champion. `tokenizer_fit`: how well a kept tokenizer fits it.
- `resolution`: which versions a run takes for NAME@champion.
- `upload`: uploads the champion to a Hugging Face Hub repository.
"""
