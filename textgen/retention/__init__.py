"""What stays in a storage folder and what goes.

- `origins`: what was made of what, by the manifests and lineages.
- `disk_space`: what nothing needs any more.
- `find_document`: which texts and versions hold a document. `withdrawal`: a document goes, with all that was made of
  it, which `derived` finds.
"""
