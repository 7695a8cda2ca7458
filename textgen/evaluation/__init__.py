"""What a model makes of a text.

- `protocols`: which tokens are scored in which context: `sliding`, `blocks`, `lm-eval`.
- `evaluate`: the loss of each token and document, perplexity of a token and of a word, bits a byte.
"""
