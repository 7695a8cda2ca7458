"""The network, and the folder that transformers opens.

- `transformer`: the decoder-only Transformer, with the shape and the parameter names of `Qwen3ForCausalLM`.
- `ops`: its two operations whose gradients are written out.
- `cached`: the model with a cache of what it has read, as inference runs it, in fp32 or in eight bits.
- `matrix`: the products of `cached`, with a few rows or, in a compiled step, with one.
- `loss`: the next-token loss. The logits [B, T, V] are never whole in memory: they are computed in chunks of rows.
- `ensemble`: the mean of several models' probabilities.
- `device`: the device, its precision, its threads, the seeds of a step.
- `pretrained`: writes and reads a model's folder, and checks that transformers gives the same logits bit for bit.
- `gguf`: the file that llama.cpp runs.
- `find`: finds the folder of `NAME@champion` or `NAME@v3` and verifies its files.
"""
