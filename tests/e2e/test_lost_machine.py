"""A machine that is lost with all its processes: its silence is noticed, and another one continues its training."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import deployed
from tests.e2e.runs import CHECKPOINT_EVERY, check_one_version, continued_from, until_child_trains, until_trained
from tests.e2e.services import Prefect, kill
from tests.waiting import held

LOST_AFTER_SECONDS = 95  # three heartbeats of 30 seconds, the shortest that Prefect sends


@pytest.fixture
def stack(tmp_path_factory, shared, webhook) -> Iterator[Prefect]:
    with deployed(tmp_path_factory.mktemp("stack"), shared, webhook, LOST_AFTER_SECONDS) as stack:
        yield stack


@pytest.mark.slow  # waits for the heartbeats that do not come
def test_a_lost_gpu_machine_is_noticed_and_another_one_continues(stack, parameters, tmp_path):
    with held(tmp_path / "data" / "checkpoints"):
        run_id = stack.create_run(parameters())
        processes = until_child_trains(stack, run_id)
        step = until_trained(tmp_path / "data")
        stack.processes["worker-gpu"].kill_group()
        kill(processes)
        stack.start_worker("gpu")
    assert stack.wait(run_id)["state_name"] == "Completed"
    first, second = stack.children(run_id)
    assert first["state"]["message"] == f"no sign of life for {LOST_AFTER_SECONDS} seconds"
    assert second["state_name"] == "Completed"
    assert continued_from(stack, run_id)[-1] >= step - 2 * CHECKPOINT_EVERY
    check_one_version(tmp_path / "data")
