"""What tests hand to a training for its figures: a function that ignores them, refuses them, or interrupts."""

from textgen.training.figures import OnMetrics


class Interruption(Exception):
    """What ends a training before its time."""


def ignore(step: int, figures: dict[str, float]) -> None:
    """Take a training's figures and do nothing."""


def refuse(step: int, figures: dict[str, float]) -> None:
    """Fail a training that does anything."""
    raise AssertionError(f"trained at step {step}")


def interrupt_at(step: int) -> OnMetrics:
    """Return a function that ends a training at its first figures of `step`."""

    def on_metrics(at: int, figures: dict[str, float]) -> None:
        if at == step:
            raise Interruption

    return on_metrics
