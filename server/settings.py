"""Everything an operator can set: one frozen tree, made of each room's own small config.

The only place that reads the environment (``MEDLEY_`` and ``__`` between levels, as ``MEDLEY_ENGINE__MAX_LORAS=32``)
or a configuration file. What is given on the command line goes before the environment, the environment before the
file, the file before the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

import adapters
from server.access.opening import AccessConfig
from server.access.tls import TlsConfig
from server.api.grpc.config import GrpcConfig
from server.api.http.config import HttpConfig
from server.core.errors import InvalidArgumentError
from server.engine.factory import EngineConfig
from server.evaluation.config import EvaluationConfig
from server.observability.logging import LogConfig
from server.observability.metrics import MetricsConfig
from server.observability.spans import TracingConfig
from server.service.adapters import CatalogConfig
from server.service.inference import InferenceConfig
from server.service.rollouts import RolloutConfig
from server.service.upkeep import RegistryConfig, StoreConfig

LIBRARY = Path(adapters.__file__).parent / "library"
DEFAULT_MODEL = LIBRARY / "medley-mini"


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Running on Ray Serve, by ``medley serve --ray`` or a Serve config file.

    Attributes:
        address: The cluster, as Ray names it; empty starts one on this machine, for as long as the server runs.
        num_replicas: Replicas of the service, each with an engine; the fewest there are.
        max_num_replicas: Most replicas where their number follows the load; 0 keeps it at ``num_replicas``.
        target_num_requests: Requests a replica is to have when their number follows the load.
        upscale_delay_s: How long the load must be high before replicas are added.
        downscale_delay_s: How long it must be low before they are taken away.
        num_doors: Processes that read requests and choose a replica for them.
        max_num_requests: Most requests a replica has at once, those it queues included.
        max_num_waiting: Most requests that wait in a door for a replica.
        spill_least: Requests a replica has before its adapters' requests go elsewhere: its rows in one batch.
        spill_factor: How many times the mean load it may have beyond that.
        is_affine: Whether requests go by their adapter; else the less loaded of two replicas is taken.
        num_cpus: Processors that Ray sets aside for a replica.
        num_gpus: GPUs that Ray sets aside for a replica.
    """

    address: str = ""
    num_replicas: int = 2
    max_num_replicas: int = 0
    target_num_requests: float = 12.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 120.0
    num_doors: int = 1
    max_num_requests: int = 64
    max_num_waiting: int = 256
    spill_least: int = 8
    spill_factor: float = 1.25
    is_affine: bool = True
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be."""
        return max(self.num_replicas, self.max_num_replicas)


class Settings(BaseSettings):
    """The whole tree.

    Attributes:
        host: Address both front ends listen on.
        port: HTTP port; 0 chooses a free one.
        grpc_port: gRPC port; 0 chooses a free one.
        data_dir: What is this server's own: uploads on their way, local copies, and the registry and the store unless
            they are elsewhere; one server at a time.
        library: Folder of adapters registered at start.
        drain_grace_s: Longest wait for running requests at shutdown.
        ready_file: Where the addresses are written once ready, or None.
        engine: The engine.
        inference: Taking requests.
        registry: Where names and keys are kept.
        store: Where adapters' bytes are kept.
        catalog: Uploads and deletions.
        access: Who may call without a key.
        tls: Certificates of both ports.
        evaluation: Scoring, and what is kept of ended requests.
        rollouts: Trying candidates.
        http: HTTP front end.
        grpc: gRPC front end.
        metrics: Bounds of what is counted apart.
        tracing: Traces.
        log: Logs.
        ray: Replicas on Ray Serve.
    """

    model_config = SettingsConfigDict(env_prefix="MEDLEY_", env_nested_delimiter="__", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    data_dir: Path = Path(".medley")
    library: Path = LIBRARY
    drain_grace_s: float = Field(default=30.0, ge=0)
    ready_file: Path | None = None
    engine: EngineConfig = EngineConfig()
    inference: InferenceConfig = InferenceConfig()
    registry: RegistryConfig = RegistryConfig()
    store: StoreConfig = StoreConfig()
    catalog: CatalogConfig = CatalogConfig()
    access: AccessConfig = AccessConfig()
    tls: TlsConfig = TlsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    rollouts: RolloutConfig = RolloutConfig()
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig = GrpcConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    log: LogConfig = LogConfig()
    ray: RayConfig = RayConfig()

    @property
    def registry_url(self) -> str:
        """The database of names and keys: the URL that was given, else SQLite in the data directory."""
        return self.registry.url or f"sqlite:///{self.data_dir.absolute() / 'registry.db'}"


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        file: A TOML or YAML file, or None.
        overrides: What the command line gave, nested as the tree.

    Raises:
        InvalidArgumentError: If the file cannot be read or a setting is unknown or out of range; the message names it.
    """
    try:
        return _with_file(file)(**(overrides or {}))
    except ValidationError as error:
        raise InvalidArgumentError(_explain(error)) from None
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read the settings: {error}") from error


def _with_file(file: Path | None) -> type[Settings]:
    class WithFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings  # neither is a source of ours
            if file is None:
                return init_settings, env_settings
            return init_settings, env_settings, _file_source(settings_cls, file)

    return WithFile


def _file_source(settings_cls: type[BaseSettings], file: Path) -> PydanticBaseSettingsSource:
    # The sources pass over a missing file in silence; a file that was asked for must be there.
    if not file.is_file():
        raise InvalidArgumentError(f"there is no configuration file {file}")
    if file.suffix == ".toml":
        return TomlConfigSettingsSource(settings_cls, file)
    if file.suffix in {".yaml", ".yml"}:
        return YamlConfigSettingsSource(settings_cls, file)
    raise InvalidArgumentError(f"a configuration file ends with .toml, .yaml or .yml, not {file.suffix!r}")


def _explain(error: ValidationError) -> str:
    faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return "settings: " + "; ".join(faults)
