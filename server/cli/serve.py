"""``medley serve``: options into settings, settings into a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli.errors import fail

_Engine = Annotated[
    Literal["auto", "native", "vllm", "fake"] | None,
    typer.Option(help="Engine; auto if left out: native for T5 models, vllm for decoder-only ones."),
]
_Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(help="Serving dtype; auto if left out: float32, or the checkpoint's with vllm."),
]
_Quantization = Annotated[
    Literal["none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double"] | None,
    typer.Option(help="Keep the base in 8 bits (int8 for speed on a CPU) or 4; none if left out."),
]
_MaxModelLen = Annotated[
    int | None, typer.Option(help="Longest input, or with vllm input and answer together; the engine's choice.")
]


def serve(
    *,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file with settings.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: folder or hub id; the shipped one if left out.")
    ] = None,
    engine: _Engine = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 if left out.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port, 0 for a free one; 8000 if left out.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port, 0 for a free one; 50051 if left out.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where adapters are kept; .medley if left out.")] = None,
    registry_url: Annotated[
        str | None,
        typer.Option(help="Database of names and keys; SQLite in the data directory if left out."),
    ] = None,
    store_url: Annotated[
        str | None, typer.Option(help="Where adapters' bytes are kept, as s3://bucket/folder; the data directory.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): TLS on both ports.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Take only clients with a certificate of this authority (mTLS).")
    ] = None,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Serve beyond this machine although there are no keys.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device; auto if left out.")] = None,
    dtype: _Dtype = None,
    quantization: _Quantization = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most requests in one batch; the engine's choice.")] = None,
    max_model_len: _MaxModelLen = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written with both addresses once ready.")] = None,
    log_format: Annotated[Literal["json", "console"] | None, typer.Option(help="console if left out.")] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve with several replicas on Ray Serve; settings are under ray.")
    ] = False,
) -> None:
    """Serve over HTTP and gRPC until stopped. What is left out here comes from MEDLEY_* or the file."""
    given: dict[str, object] = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "data_dir": data_dir,
        "ready_file": ready_file,
        "registry": {"url": registry_url},
        "store": {"url": store_url},
        "tls": {"cert_file": tls_cert, "key_file": tls_key, "client_ca_file": tls_client_ca},
        "access": {"allow_open": allow_open or None},
        "engine": {
            "model": model,
            "name": engine,
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
        },
        "log": {"format": log_format},
    }
    _run_server(config, given_only(given), on_ray=ray)


def given_only(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options without those left out (None), at every level."""
    nested = {key: given_only(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def _run_server(config: Path | None, given: Mapping[str, object], *, on_ray: bool) -> None:
    import uvloop

    from adapters.errors import AdapterError
    from server.core.errors import MedleyError, code_of
    from server.observability.logging import configure_logging
    from server.runtime.local import Addresses, serve
    from server.runtime.ray_local import serve_on_ray
    from server.settings import load_settings

    def announce(addresses: Addresses) -> None:
        scheme = "https" if settings.tls.is_on else "http"
        typer.echo(f"medley is ready: HTTP {scheme}://{addresses.http} · gRPC {addresses.grpc}")

    try:
        settings = load_settings(config, given)
        configure_logging(settings.log)
        uvloop.run((serve_on_ray if on_ray else serve)(settings, announce))
    except (MedleyError, AdapterError) as error:
        fail(code_of(error), error.message)
