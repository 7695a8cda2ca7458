"""One thin Prefect task a stage: the library's function, with retries and a result cached under its content key.

- `fetch`, `look`, `drift`, `tokenize`, `fit_tokenizer`, `train`, `evaluate`, `publish`, `upload`, `compare`: a stage
  each.
- `stage`: what they share. `dispatch`, `follow`, `cancel`: a training on another work pool, its progress and its end.
- `report`: what a run shows in the Prefect UI. `redact`: secrets reach no log.
- `wandb_run`, `tracker`, `run_page`: the W&B run of a training, the thread that writes it, and its page.
- `tracking`: published versions in W&B, and the command that sends what waits.
"""

import logging
import os

from tasks import redact

# Read by Prefect when it is imported, so set before any task imports it. In a worker's process it is imported before:
# prefect.yaml sets what counts there.
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "textgen,tasks")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # a slow first start is no failure
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # the temporary server sends no telemetry,
os.environ.setdefault("DO_NOT_TRACK", "1")  # nor does the client, which prints a notice where it would

# Otherwise the temporary server prints its errors, as of being stopped while it is busy, into the command's terminal.
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")

redact.install()
for name in ("textgen", "tasks"):
    logging.getLogger(name).setLevel(logging.INFO)
