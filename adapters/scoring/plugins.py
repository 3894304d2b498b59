"""Metrics by name, as an adapter's manifest asks for them, and which ones a task has when it asks for none.

A metric is a :class:`MetricPlugin`: those here, and any that an installed package registers under the entry-point group
``medley.metrics``. One name may give several figures, as ``rouge`` does. Importing this loads no metric. Knows no
adapters and no requests.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from adapters.errors import InvalidAdapterError
from adapters.scoring.builtin import load_bleu, load_chrf, load_exact_match, load_rouge, load_signal
from adapters.strict_json import show

_log = logging.getLogger(__name__)
ENTRY_POINTS = "medley.metrics"
MAX_NUM_METRICS = 16

ScoreOne = Callable[[str, Sequence[str], str], Mapping[str, float]]
"""From a text, its references and its source to figures by name. Used from one thread at a time."""


@dataclass(frozen=True, slots=True)
class MetricPlugin:
    """One metric that a manifest may name.

    Attributes:
        load: Makes what scores one text; may take seconds, as it imports what it needs.
        figures: The names of what it gives.
        needs_references: Whether it can say nothing of a text alone.
        needs_source: Whether it can say nothing without the text that was asked about.
        is_percent: Whether its figures are from 0 to 100; others are in reports, but in no histogram and no rollout.
    """

    load: Callable[[], ScoreOne]
    figures: tuple[str, ...]
    needs_references: bool = True
    needs_source: bool = False
    is_percent: bool = True

    def applies(self, references: Sequence[str], source: str) -> bool:
        """Whether there is what it needs."""
        return bool((references or not self.needs_references) and (source or not self.needs_source))


BUILT_IN: Mapping[str, MetricPlugin] = MappingProxyType(
    {
        "rouge": MetricPlugin(load_rouge, ("rouge1", "rouge2", "rougeL", "rougeLsum")),
        "bleu": MetricPlugin(load_bleu, ("bleu_sentence",)),
        "chrf": MetricPlugin(load_chrf, ("chrf_sentence",)),
        "exact_match": MetricPlugin(load_exact_match, ("exact_match",)),
        "repetition": MetricPlugin(lambda: load_signal("repetition"), ("repetition",), needs_references=False),
        "length_ratio": MetricPlugin(
            lambda: load_signal("length_ratio"),
            ("length_ratio",),
            needs_references=False,
            needs_source=True,
            is_percent=False,
        ),
        "copy_rate": MetricPlugin(
            lambda: load_signal("copy_rate"), ("copy_rate",), needs_references=False, needs_source=True
        ),
    }
)

DEFAULT_METRICS: tuple[str, ...] = ("rouge",)
TASK_METRICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "translation": ("bleu", "chrf", "rouge"),
        "classification": ("exact_match",),
        "question-answering": ("exact_match", "rouge"),
    }
)
"""What a task is scored by where that is not :data:`DEFAULT_METRICS`."""


@cache
def known_metrics() -> Mapping[str, MetricPlugin]:
    """Return every metric by its name: those here, and those of installed packages, which cannot replace ours."""
    known = dict(BUILT_IN)
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            plugin = point.load()
        except Exception:
            # A stranger's package must not keep a server from scoring with what is sound.
            _log.exception("the metric %s of %s cannot be loaded", point.name, point.value)
            continue
        if point.name in known or not isinstance(plugin, MetricPlugin):
            _log.error("the metric %s of %s is left out: a known name, or no MetricPlugin", point.name, point.value)
            continue
        known[point.name] = plugin
    return MappingProxyType(known)


def percent_figures() -> frozenset[str]:
    """Return the names of all figures that are in percent, of every known metric."""
    return frozenset(figure for plugin in known_metrics().values() if plugin.is_percent for figure in plugin.figures)


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names if each is a metric's.

    Raises:
        InvalidAdapterError: If one is unknown, or there are more than 16; the message names those there are.
    """
    unknown = [name for name in names if name not in known_metrics()]
    if unknown:
        raise InvalidAdapterError(
            f"there is no metric {show(', '.join(unknown))}; metrics are {', '.join(sorted(known_metrics()))}"
        )
    if len(names) > MAX_NUM_METRICS:
        raise InvalidAdapterError(f"{len(names)} metrics are named; at most {MAX_NUM_METRICS} are taken")
    return tuple(dict.fromkeys(names))


def metrics_of(metrics: Sequence[str], task: str) -> tuple[str, ...]:
    """Return what an adapter is scored by: the metrics it names, else those of its task.

    Args:
        metrics: As its manifest has them; names this server does not know are passed over.
        task: As its manifest has it: ``Question answering`` is ``question-answering``.
    """
    named = tuple(name for name in metrics if name in known_metrics())
    return named or TASK_METRICS.get("-".join(task.lower().replace("_", " ").split()), DEFAULT_METRICS)


def live_figures(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the names of what known metrics give of live traffic, in percent, once the text asked about is gone."""
    plugins = (known_metrics()[name] for name in metrics)
    return tuple(
        figure for plugin in plugins if plugin.is_percent and not plugin.needs_source for figure in plugin.figures
    )


def joined_metrics(several: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return what an answer of several adapters is scored by: all they ask for, each once; the default for none."""
    return tuple(dict.fromkeys(name for metrics in several for name in metrics)) or DEFAULT_METRICS


class PluginScorer:
    """Scores each text by the metrics asked for, loading each metric when it is first needed.

    Use one from one thread at a time; a text takes milliseconds of CPU.
    """

    def __init__(self) -> None:
        """Load nothing yet."""
        self._loaded: dict[str, ScoreOne] = {}

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        """Return the figures of one text by name; a metric that lacks its references or its source gives none.

        Args:
            prediction: The text.
            references: What people wrote.
            metrics: Names of metrics; :data:`DEFAULT_METRICS` if there are none.
            source: What the text was made of; empty where it is not known.

        Raises:
            KeyError: If a metric is unknown.
        """
        figures: dict[str, float] = {}
        for name in metrics or DEFAULT_METRICS:
            plugin = known_metrics()[name]
            if plugin.applies(references, source):
                figures |= self._scorer(name, plugin)(prediction, references, source)
        return figures

    def load(self, names: Sequence[str]) -> None:
        """Load metrics now rather than with the first text.

        Raises:
            KeyError: If one is unknown.
        """
        for name in names:
            self._scorer(name, known_metrics()[name])

    def _scorer(self, name: str, plugin: MetricPlugin) -> ScoreOne:
        if name not in self._loaded:
            self._loaded[name] = plugin.load()
        return self._loaded[name]


def metric_suite(names: Sequence[str]) -> Callable[[str, Sequence[str], str], dict[str, float]]:
    """Return what gives all figures of these metrics for a text, its references and its source.

    Use it from one thread at a time. A metric without its references or its source gives no figure.

    Raises:
        InvalidAdapterError: If a metric is unknown.
    """
    known, scorer = check_metrics(names), PluginScorer()
    scorer.load(known)

    def score(prediction: str, references: Sequence[str], source: str) -> dict[str, float]:
        return scorer.score(prediction, references, known, source)

    return score
