"""An operator who changes adapters during a run: a new version, its promotion, the deletion of an old one, and again.

Knows neither the load beside it nor how its figures are made.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from loadtest.clients.base import ClientError, MedleyClient
from loadtest.scenario import Churn
from loadtest.timeline import Change, Event
from loadtest.variants import Variants

ALIAS = "stable"
"""What a bare name stands for, so that a promotion changes what requests get."""


class Operator:
    """Changes adapters, one change after the other; a change that is refused is noted, and the next one tried.

    Args:
        client: An open client.
        churn: What to change and how often.
        on_event: Given each change once it is done.
    """

    def __init__(self, client: MedleyClient, churn: Churn, on_event: Callable[[Event], None]) -> None:
        self._client, self._churn, self._on_event = client, churn, on_event
        self._variants = Variants(churn.source)
        self._versions: dict[str, deque[int]] = {name: deque() for name in churn.names}
        self._num_uploads = 0

    async def work(self, zero_s: float) -> None:
        """Go on until cancelled.

        Args:
            zero_s: When the measured part begins, on the event loop's clock.
        """
        clock = asyncio.get_running_loop().time
        due_s = max(clock(), zero_s)
        while True:
            for change in (Change.UPLOAD, Change.PROMOTE, Change.DELETE):
                for name in self._churn.names:
                    if change is not Change.UPLOAD and not self._is_due(change, name):
                        continue
                    await asyncio.sleep(max(0.0, due_s - clock()))
                    started_s = clock()
                    version, code = await self._try(change, name)
                    self._on_event(Event(change, name, version, started_s - zero_s, clock() - zero_s, code))
                    due_s = max(due_s + self._churn.every_s, clock())

    def _is_due(self, change: Change, name: str) -> bool:
        return len(self._versions[name]) > (self._churn.keep if change is Change.DELETE else 0)

    async def _try(self, change: Change, name: str) -> tuple[int, str]:
        versions = self._versions[name]
        version = 0
        try:
            if change is Change.UPLOAD:
                self._num_uploads += 1
                with self._variants.folder(self._num_uploads, *name.encode()) as folder:
                    version = (await self._client.upload_adapter(name, folder)).version
                versions.append(version)
            elif change is Change.PROMOTE:
                version = versions[-1]
                await self._client.set_alias(name, ALIAS, version)
            else:
                version = versions.popleft()
                await self._client.delete_version(name, version)
        except ClientError as error:
            return version, error.code
        return version, ""
