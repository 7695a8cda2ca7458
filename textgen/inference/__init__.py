"""A prompt becomes text.

- `sampling`: how the next token is drawn from logits, as pure functions.
- `text_stream`: token ids become text as they come, in whole characters, up to a stop string.
- `engine`: writes several texts at once, a token each at a time; they join and leave between tokens.
- `protocol`: requests and replies in the form of OpenAI's completions.
- `worker`: the thread of a server that computes, and the one that follows the version in use.
- `server`, `replies`, `http`, `figures`: the server, its answers, and what Prometheus reads. `page.html`: its page.
"""
