"""What runs, in order."""

import tasks  # noqa: F401  sets Prefect's environment before a flow imports Prefect
