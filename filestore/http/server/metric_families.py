"""What `/metrics` shows: the names, kinds, labels and meanings of all metrics. docs/metrics.md lists them too."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from filestore.system.metrics import Event, Gauge

PREFIX = "filestore_"
BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
"""The upper bounds in seconds of the buckets of the duration of requests. One more bucket has no bound."""


class Kind(StrEnum):
    """What a metric does: a counter only grows, a gauge also falls."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    """A metric, without the prefix of its name and, for a counter, without `_total`."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    source: Event | Gauge | None = None
    """The numbers of the processes whose sum is the metric. None if it is made otherwise."""

    @property
    def shown_name(self) -> str:
        """The name in Prometheus."""
        return f"{PREFIX}{self.name}{'_total' if self.kind is Kind.COUNTER else ''}"


_C, _G = Kind.COUNTER, Kind.GAUGE

DURATION = Family("http_request_duration_seconds", Kind.HISTOGRAM, "How long requests took.", ("route",))

COUNTED = (
    Family(
        "http_requests",
        _C,
        "Requests that have ended, by the class of their status, such as 2xx; cut is without a status.",
        ("route", "method", "status"),
        Event.REQUESTS,
    ),
    Family("http_received_bytes", _C, "Bytes of the bodies of requests.", ("route",), Event.BYTES_RECEIVED),
    Family("http_sent_bytes", _C, "Bytes of the bodies of answers.", ("route",), Event.BYTES_SENT),
    Family("errors", _C, "Errors that were answered, by their slug.", ("error",), Event.ERRORS),
    Family("http_connections_refused", _C, "Connections that a limit refused.", (), Event.CONNECTIONS_REFUSED),
    Family("wrong_credentials", _C, "Requests with a wrong token or signature.", (), Event.WRONG_CREDENTIALS),
    Family("guesses_refused", _C, "Wrong tokens and signatures beyond the limit of an address.", (), Event.GUESSES_REFUSED),
    Family("requests_cut", _C, "Requests in progress whose token was removed.", (), Event.REQUESTS_CUT),
    Family("files_stored", _C, "Files that were stored.", (), Event.FILES_STORED),
    Family("files_stored_bytes", _C, "Bytes of content of the files that were stored.", (), Event.FILES_STORED_SIZE),
    Family("files_removed", _C, "Files that were removed.", (), Event.FILES_REMOVED),
    Family("chunks_stored", _C, "Chunks that are new in their namespace.", (), Event.CHUNKS_STORED),
    Family("chunks_stored_content_bytes", _C, "Bytes of content of the chunks that are new.", (), Event.CHUNKS_STORED_SIZE),
    Family("chunks_stored_frame_bytes", _C, "Bytes that the chunks that are new take, encoded.", (), Event.FRAMES_STORED_SIZE),
    Family(
        "encoding_saved_bytes", _C, "By how much encoding made them smaller than their content.", (), Event.ENCODING_SAVED_SIZE
    ),
    Family("chunks_shared", _C, "Chunks that a push asked about and that were there.", (), Event.CHUNKS_SHARED),
    Family("chunks_shared_content_bytes", _C, "Bytes of content of the chunks that were there.", (), Event.CHUNKS_SHARED_SIZE),
    Family(
        "cache_lookups",
        _C,
        "Looks into a cache: the manifests of a server, the files of a runtime, or the frames of a peer.",
        ("cache", "result"),
        Event.CACHE_LOOKUPS,
    ),
    Family("collections", _C, "Collections of one namespace: complete, stopped or failed.", ("result",), Event.COLLECTIONS),
    Family("collection_seconds", _C, "The time that collections took.", (), Event.COLLECTION_SECONDS),
    Family("collected_chunks", _C, "Chunks that collections removed.", (), Event.COLLECTED_CHUNKS),
    Family("collected_bytes", _C, "Bytes that collections freed.", (), Event.COLLECTED_SIZE),
    Family("scrub_chunks", _C, "Chunks that scrubs have read.", (), Event.SCRUBBED_CHUNKS),
    Family("scrub_bytes", _C, "Bytes that scrubs have read.", (), Event.SCRUBBED_SIZE),
    Family("scrub_damaged_chunks", _C, "Damaged chunks that scrubs have found.", (), Event.SCRUB_DAMAGED),
    Family("digested_bytes", _C, "Bytes of content that were read for secondary digests.", (), Event.DIGESTED_SIZE),
    Family(
        "log_lines_left_out",
        _C,
        "Lines that the access log or the audit log left out, because they were too many, or could not be written.",
        ("log",),
        Event.LOG_LINES_LEFT_OUT,
    ),
    Family("http_connections", _G, "Open connections.", (), Gauge.CONNECTIONS),
    Family("http_requests_in_progress", _G, "Requests that are answered now.", (), Gauge.REQUESTS),
    Family("transfers_in_progress", _G, "Connections whose transfers are under way.", (), Gauge.TRANSFERS),
    Family("budget_taken_bytes", _G, "Memory that bodies, or pushes in the server, take.", ("budget",), Gauge.BUDGET_TAKEN),
    Family("manifests_bytes", _G, "Memory that the manifests of files take that are read.", (), Gauge.MANIFESTS_SIZE),
    Family("digests_waiting", _G, "Stored files and trees whose secondary digests are due.", (), Gauge.DIGESTS_WAITING),
    Family("trees_bytes", _G, "Memory that the lists of files of directories take whose files are read.", (), Gauge.TREES_SIZE),
    Family("queue_length", _G, "Tasks that wait for memory, a thread or a turn.", ("queue",), Gauge.QUEUE),
)
"""Sums over all processes."""

STAGES = (
    Family("stage_spans", _C, "How often each stage of a transfer ran.", ("stage",)),
    Family("stage_bytes", _C, "Bytes that passed each stage.", ("stage",)),
    Family("stage_seconds", _C, "The time of all threads in each stage.", ("stage",)),
    Family("stage_cpu_seconds", _C, "The processor time of all threads in each stage.", ("stage",)),
)
"""In the order of `StageTotals`."""

STARTS = (
    Family("pipeline_starts", _C, "Starts of pipelines."),
    Family("pipeline_runs_without_start", _C, "Runs whose pipeline was loaded already."),
    Family("pipeline_start_bytes", _C, "Bytes of files for starts: received, cached or reused.", ("source",)),
    Family("pipeline_start_seconds", _C, "The time of starts: for the process, to fetch, to load.", ("step",)),
)

PROCESSES = (
    Family("process_cpu_seconds", _C, "Processor time of a server process and of those before it at its place.", ("process",)),
    Family("process_starts", _C, "How often a process began at this place.", ("process",), Event.PROCESS_STARTS),
    Family("process_resident_memory_bytes", _G, "Resident memory of a process.", ("process",), Gauge.MEMORY),
    Family("process_peak_memory_bytes", _G, "The largest resident memory of all processes at this place.", ("process",)),
    Family("process_open_fds", _G, "Open files and connections of a process.", ("process",), Gauge.OPEN_FILES),
    Family(
        "tls_certificate_expiry_timestamp_seconds",
        _G,
        "When the certificate that a process uses expires; absent without TLS.",
        ("process",),
        Gauge.CERTIFICATE_EXPIRES_AT,
    ),
    Family("process_start_timestamp_seconds", _G, "When a process began.", ("process",), Gauge.STARTED_AT),
)
"""One sample for each server process."""

LOOKED_AT = (
    Family("disk_size_bytes", _G, "Size of the file system of the repository."),
    Family("disk_free_bytes", _G, "Free bytes of the file system of the repository."),
    Family("disk_min_free_bytes", _G, "With less free space nothing new is stored (setting min_free)."),
    Family("index_size_bytes", _G, "Size of the files of the index."),
    Family("uploads_open", _G, "Unfinished uploads of this host, by form or in parts; with an object store, forms only."),
    Family("uploads_open_bytes", _G, "Disk space that unfinished uploads take or have announced."),
    Family("uploads_in_store", _G, "Unfinished uploads in parts in the object store, of all servers; 0 with a folder."),
    Family("uploads_in_store_bytes", _G, "Bytes of the parts of the uploads in the object store."),
    Family("namespaces", _G, "Namespaces of the repository."),
    Family("namespace_files", _G, "Files, with all versions.", ("namespace",)),
    Family("namespace_names", _G, "Different names of files.", ("namespace",)),
    Family("namespace_content_bytes", _G, "Bytes of content of the files, each counted in full.", ("namespace",)),
    Family("namespace_chunks", _G, "Chunks, each counted once.", ("namespace",)),
    Family("namespace_stored_bytes", _G, "Bytes that the chunks take, encoded.", ("namespace",)),
    Family("collection_last_end_timestamp_seconds", _G, "When a collection was last complete.", ("namespace",)),
    Family("scrub_position_ratio", _G, "How much of the current pass a scrub has read, from 0 to 1.", ("namespace",)),
    Family("scrub_pass_begin_timestamp_seconds", _G, "When the current pass of a scrub began.", ("namespace",)),
    Family("scrub_last_pass_end_timestamp_seconds", _G, "When a scrub last read everything; 0 if none did.", ("namespace",)),
    Family("damaged_chunks", _G, "Damaged chunks that scrubs know of, at most 1000.", ("namespace",)),
)
"""What is looked at on the disk and in the index, at most every few seconds."""

OTHERS = (
    Family("build_info", _G, "1; the labels say what runs.", ("version", "python")),
    Family("processes", _G, "Server processes on the port (setting workers)."),
    Family("collection_interval_seconds", _G, "The time between two collections of a namespace; 0 if there are none."),
    Family("scrub_interval_seconds", _G, "The time in which a scrub reads everything; 0 if there is none."),
    Family("numbers_left_out", _C, "Numbers that did not fit into the memory for them; it is 0, or a fault of the server."),
)

FAMILIES = (DURATION, *COUNTED, *STAGES, *STARTS, *PROCESSES, *LOOKED_AT, *OTHERS)
