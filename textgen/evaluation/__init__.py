"""What a model makes of a text.

- `protocols`: which tokens are scored in which context: `sliding`, `blocks`, `lm-eval`.
- `scoring`: the loss of each token and document, perplexity of a token and of a word, bits a byte.
- `evaluate`: a checkpoint on its corpus, or any model on a text file.
"""
