"""Write metrics in the text formats of Prometheus and OpenMetrics. Import this module when it is needed: it takes 0.15 s."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from platform import python_version

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from filestore.http.server.metric_families import BUCKETS, FAMILIES, PREFIX, Family, Kind

_Samples = Mapping[str, Mapping[tuple[str, ...], float]]


def render(samples: _Samples, accept: str, *, families: Sequence[Family] = FAMILIES) -> tuple[bytes, str]:
    """Return the text of those of the metrics that have samples, and its type. A client that accepts OpenMetrics gets that."""
    try:
        encode, kind = choose_encoder(accept)
    except (TypeError, ValueError):  # the version that it asks for is not a number
        encode, kind = choose_encoder("")
    registry = CollectorRegistry()
    registry.register(_Collector(samples, families))
    return encode(registry), kind


class _Collector(Collector):
    """Gives the samples to the library."""

    def __init__(self, samples: _Samples, families: Sequence[Family]) -> None:
        self._samples = samples
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield each metric that has samples."""
        samples: _Samples = {**self._samples, "build_info": {(_version(), python_version()): 1.0}}
        for family in self._families:
            if found := samples.get(family.name):
                yield _histogram(family, found) if family.kind is Kind.HISTOGRAM else _metric(family, found)


def _version() -> str:
    try:
        return version("model-filestore")
    except PackageNotFoundError:  # run from its source
        return "unknown"


def _metric(family: Family, samples: Mapping[tuple[str, ...], float]) -> Metric:
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(f"{PREFIX}{family.name}", family.meaning, labels=family.labels)
    for labels, value in sorted(samples.items()):
        metric.add_metric(labels, value)
    return metric


def _histogram(family: Family, samples: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a histogram of samples whose last label is the number of a bucket, or `sum`."""
    metric = HistogramMetricFamily(f"{PREFIX}{family.name}", family.meaning, labels=family.labels)
    counts: defaultdict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * (len(BUCKETS) + 1))
    sums: dict[tuple[str, ...], float] = {}
    for (*labels, which), value in sorted(samples.items()):
        if which == "sum":
            sums[tuple(labels)] = value
        else:
            counts[tuple(labels)][int(which)] = value
    bounds = [*map(str, BUCKETS), "+Inf"]
    for labels_of, each in counts.items():
        buckets = list(zip(bounds, accumulate(each), strict=True))
        metric.add_metric(labels_of, buckets, sums.get(labels_of, 0.0))
    return metric
