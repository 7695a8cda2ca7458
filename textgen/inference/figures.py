"""What a server counts and times, in the form that Prometheus reads, under vLLM's names."""

import time

from textgen.inference.engine import Piece
from textgen.inference.worker import Job, Worker

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BETWEEN_TOKENS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
WHOLE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Figures:
    """The counters and histograms of one server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.running = Gauge("textgen_num_requests_running", "Texts that are being written", registry=self.registry)
        self.waiting = Gauge("textgen_num_requests_waiting", "Texts that wait to be begun", registry=self.registry)
        self.prompt_tokens = Counter(
            "textgen_prompt_tokens", "Tokens of prompts, once for each text", registry=self.registry
        )
        self.generation_tokens = Counter(
            "textgen_generation_tokens", "Tokens written, ends of texts with them", registry=self.registry
        )
        self.success = Counter(
            "textgen_request_success", "Texts that ended, by why", ["finished_reason"], registry=self.registry
        )
        self.responses = Counter(
            "textgen_http_responses", "Answers, by path and status", ["path", "status"], registry=self.registry
        )
        self.first_token = Histogram(
            "textgen_time_to_first_token_seconds", "From a request to a text's first token",
            buckets=FIRST_TOKEN_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "textgen_inter_token_latency_seconds", "Between two tokens of a text",
            buckets=BETWEEN_TOKENS_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.whole = Histogram(
            "textgen_e2e_request_latency_seconds", "From a request to the end of a text",
            buckets=WHOLE_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.version = Gauge("textgen_version_info", "The version in use", ["version"], registry=self.registry)

    def note(self, job: Job, piece: Piece) -> None:
        """Count what a text got in a step; the worker's thread calls this."""
        now, generation = time.monotonic(), piece.generation
        made = len(generation.ids) - generation.counted
        if made or generation.prompt_scores:  # else it was cancelled while it waited, or between two tokens
            if generation.tokens_at is None:
                self.prompt_tokens.inc(len(generation.request.prompt_ids))
                self.first_token.observe(now - job.started)
            else:
                self.between_tokens.observe(now - generation.tokens_at)
            self.generation_tokens.inc(made)
            generation.tokens_at, generation.counted = now, len(generation.ids)
        if piece.finish is not None:
            self.success.labels(piece.finish).inc()
            self.whole.observe(now - job.started)

    def text(self, worker: Worker) -> bytes:
        """Return all figures as Prometheus reads them."""
        from prometheus_client import generate_latest

        self.running.set(worker.running)
        self.waiting.set(worker.waiting)
        self.version.clear()
        if worker.current_name is not None:
            self.version.labels(worker.current_name).set(1)
        return generate_latest(self.registry)
