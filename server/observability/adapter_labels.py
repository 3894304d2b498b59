"""Which label a request's adapters are counted under: a bounded number of them, whatever is asked for.

Knows names only. Any thread.
"""

from collections.abc import Sequence

BASE = "base"
OTHER = "other"
UNRESOLVED = "unresolved"
"""Label of requests refused before their adapters were found: names nobody registered must not become labels."""


class AdapterLabels:
    """Gives the first combinations of names a label each, and all later ones :data:`OTHER`.

    Args:
        max_num_labels: Most combinations with a label of their own, :data:`BASE` not among them.
    """

    def __init__(self, max_num_labels: int) -> None:
        """Start with none given."""
        self._max_num_labels = max_num_labels
        self._given: set[str] = set()

    def label(self, names: Sequence[str]) -> str:
        """Return the label of adapters used together: their names in alphabetical order, joined by ``+``."""
        if not names:
            return BASE
        label = "+".join(sorted(names))
        if label in self._given:
            return label
        # Two threads here at once may give one label too many, which does no harm.
        if len(self._given) >= self._max_num_labels:
            return OTHER
        self._given.add(label)
        return label
