"""What evaluation does beside requests: it removes what is too old, and scores references that were left waiting.

References wait where a server took them and ended before it scored them, or had too much to do. One thread; a database
that is away is said and tried again.
"""

import asyncio
import logging
import threading
from collections.abc import Callable

from adapters.errors import StoreError
from server.evaluation.config import EvaluationConfig
from server.evaluation.records import Record
from server.evaluation.store import EvaluationStore

_log = logging.getLogger(__name__)


class EvaluationUpkeep:
    """The thread.

    Args:
        store: What is kept up.
        offer: Has references scored; must not wait.
        config: How often, and for how long things are kept.
    """

    def __init__(
        self, store: EvaluationStore, offer: Callable[[Record, tuple[str, ...]], None], config: EvaluationConfig
    ) -> None:
        """Start nothing; :meth:`start` does."""
        self._store = store
        self._offer = offer
        self._config = config
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look at once, and every so often from then on."""
        self._thread = threading.Thread(target=self._work, name="evaluation-upkeep", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop after the look that is under way."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def look(self) -> None:
        """Take on what waits, then remove what is too old.

        Raises:
            StoreError: If the database cannot be used.
        """
        config = self._config
        # No more than fit into the scorer's queue beside what requests ask for.
        limit = max(config.max_num_queued // 2, 1)
        for record, references in self._store.claim(older_than_s=config.claim_lease_s, limit=limit):
            self._offer(record, references)
        num_gone = self._store.trim(max_age_s=config.max_age_s, max_num=config.max_num_kept)
        if num_gone:
            _log.info("ended requests removed", extra={"num_requests": num_gone})

    def _work(self) -> None:
        while True:
            try:
                self.look()
            except StoreError as error:
                _log.warning("evaluation cannot be kept up now: %s", error.message)
            except Exception:
                _log.exception("keeping evaluation up failed")
            if self._stopping.wait(self._config.upkeep_every_s):
                return
