"""What runs, in order.

- `train_flow`: the parent flow and its command. `stages`: its stages. `train_model`: the training as a flow of its own.
- `command_line`, `prefect_settings`: what is read and checked before Prefect is imported. `server`: which one is used.
- `form`: the run's form in the Prefect UI. `summary`: what a terminal shows at the end.
- `setup`: what a server needs before a deployment.
"""

import tasks  # noqa: F401  sets Prefect's environment before a flow imports Prefect
