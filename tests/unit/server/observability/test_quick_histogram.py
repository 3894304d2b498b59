"""The histogram of what is observed once a token shows what the library's would."""

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from server.observability.quick_histogram import QuickHistogram

BOUNDS = (0.001, 0.0025, 0.01, 1.28)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    found = {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    return {key: value for key, value in found.items() if not key[0].endswith("_created")}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*BOUNDS, 0.0, 0.002, 0.5, 7.0])))
def test_quick_histogram_shows_what_the_librarys_shows(values: list[float]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    library = Histogram("gap_seconds", "Gaps.", buckets=BOUNDS, registry=theirs)
    quick = QuickHistogram("gap_seconds", "Gaps.", BOUNDS)
    ours.register(quick)
    for value in values:
        library.observe(value)
        quick.observe(value)
    assert samples(ours) == samples(theirs)
