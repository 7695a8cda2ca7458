"""Runs side by side.

- `record`: what is known of one run, collected from its training and its version. `compare` sets several side by side:
  `differences` of settings and text, `paired` tests on the documents that all were scored on.
- `words` shows a comparison in a terminal and as Markdown, `page` as an HTML page, `plot` as a picture.
"""
