"""Makes the adapters a scenario asks for, where the server does not have them. Knows nothing of the run."""

from collections.abc import Sequence

from loadtest.clients.base import MedleyClient
from loadtest.variants import Variants


async def prepare(client: MedleyClient, names: Sequence[str], source: str) -> None:
    """Upload a variant of the source for each name that the server does not know.

    Args:
        client: An open client.
        names: Adapter names, without versions or aliases.
        source: A PEFT folder, or the name of a shipped adapter.

    Raises:
        SourceError: If the source cannot be used.
        ClientError: If the server refuses one.
    """
    known = {version.name for version in await client.list_adapters()}
    missing = [name for name in names if name not in known]
    variants = Variants(source)
    for name in missing:
        with variants.folder(0, *name.encode()) as folder:
            await client.upload_adapter(name, folder)
