"""What a model makes of a text: which tokens a protocol scores, their losses, and perplexity."""
