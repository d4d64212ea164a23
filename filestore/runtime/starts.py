"""What the start of a pipeline took: in a run's answer, in the log of the server, and in its measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import monotonic

from filestore.runtime.prepare import PrepareResult
from filestore.runtime.printed import LogWriter
from filestore.system.metrics import StartTotals, count_start


@dataclass(slots=True, kw_only=True)
class PipelineStart:
    """What a run needed until its pipeline was started. All numbers are 0 if the pipeline was loaded already."""

    was_loaded: bool = False
    bytes_received: int = 0
    """Encoded bytes of the graph and the static files that were received over the network."""
    bytes_cached: int = 0
    """Their decoded bytes that were already in the cache."""
    bytes_reused: int = 0
    """Their decoded bytes that were copied from other versions, or were left by an interrupted fetch."""
    process_seconds: float = 0.0
    """The time until the process had imported the Pipeline SDK."""
    fetch_seconds: float = 0.0
    """The time until the graph and the static files were in the cache."""
    load_seconds: float = 0.0
    """The time for unpickling the graph, and for the functions that the pipeline runs when it starts."""

    @contextmanager
    def process(self) -> Iterator[None]:
        """Add the time of a block to `process_seconds`."""
        started = monotonic()
        yield
        self.process_seconds += monotonic() - started

    @contextmanager
    def load(self) -> Iterator[None]:
        """Add the time of a block to `load_seconds`."""
        started = monotonic()
        yield
        self.load_seconds += monotonic() - started

    def add_files(self, prepared: PrepareResult) -> None:
        """Add files that are in the cache now."""
        self.bytes_received += prepared.bytes_received
        self.bytes_cached += prepared.bytes_cached
        self.bytes_reused += prepared.bytes_reused
        self.fetch_seconds += prepared.seconds

    def as_json(self) -> dict[str, object]:
        """Return the member `filestore` of a run's answer."""
        return asdict(self)

    def report(self, run_id: str, pipeline_id: str, log: LogWriter) -> None:
        """Add this start to the measurements of the process, and log it unless the pipeline was loaded already."""
        amounts = asdict(self)
        was_loaded = amounts.pop("was_loaded")
        count_start(StartTotals(times=int(not was_loaded), already_loaded=int(was_loaded), **amounts))
        if not was_loaded:
            seconds = self.process_seconds + self.fetch_seconds + self.load_seconds
            text = (
                f"{run_id} started {pipeline_id} in {seconds:.2f} s: process {self.process_seconds:.2f} s, "
                f"files {self.fetch_seconds:.2f} s, load {self.load_seconds:.2f} s; {self.bytes_received} bytes received, "
                f"{self.bytes_cached} from the cache, {self.bytes_reused} from other versions"
            )
            # By its thread: a log that nobody reads must not stop the event loop.
            log.write([text])
