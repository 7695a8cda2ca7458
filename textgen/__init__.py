"""A decoder-only Transformer language model: its text, its training, its measure, its versions.

The rooms, from the top: `commands`, then `comparison` and `retention`, `publishing`, `training`, `evaluation` and
`inference`, `model`, `text`. Each imports only from those after it. Below them:

- `config`, `sections`, `settings`, `plain_yaml`: the configuration: its sections, how a person reads it, its YAML.
- `storage`, `files`, `hub`: the storage root and its mirror on a remote one; files that can be trusted; the Hub.
- `errors`, `terminal`, `bar`, `polling`: errors and exit codes, text on a terminal, progress, a thread that looks.
- `cores`: the cores that a process may use.
"""

__version__ = "0.1.0"
