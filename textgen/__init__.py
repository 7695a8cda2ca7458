"""The library: text to tokens, a decoder-only Transformer, its training, its perplexity, its published form."""
