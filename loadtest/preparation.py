"""Makes the adapters a scenario asks for, where the server does not have them. Knows nothing of the run."""

from collections.abc import Callable, Sequence

from loadtest.clients.base import MedleyClient
from loadtest.variants import Variants


async def prepare(
    client: MedleyClient, names: Sequence[str], source: str, on_made: Callable[[int, int], None] | None = None
) -> None:
    """Upload a variant of the source for each name that the server does not know.

    Args:
        client: An open client.
        names: Adapter names, without versions or aliases.
        source: A PEFT folder, or the name of a shipped adapter.
        on_made: Called after each that was made with how many there are and how many there will be.

    Raises:
        SourceError: If the source cannot be used.
        ClientError: If the server refuses one.
    """
    known = {version.name for version in await client.list_adapters()}
    missing = [name for name in names if name not in known]
    variants = Variants(source)
    for num_made, name in enumerate(missing, start=1):
        with variants.folder(0, *name.encode()) as folder:
            await client.upload_adapter(name, folder)
        if on_made is not None:
            on_made(num_made, len(missing))
