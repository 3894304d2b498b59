from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core.errors import InvalidArgumentError
from server.settings import LIBRARY, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import os

    for name in [name for name in os.environ if name.startswith("MEDLEY_")]:
        monkeypatch.delenv(name)
    return


def written(folder: Path, text: str, name: str = "medley.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_settings_without_anything_are_the_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.grpc_port) == ("127.0.0.1", 8000, 50051)
    assert (settings.engine.name, settings.engine.model, settings.engine.vllm) == ("auto", "", {})
    assert settings.library == LIBRARY


def test_settings_command_line_goes_before_environment_before_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(
        tmp_path, "port = 1\ngrpc_port = 1\nhost = '::1'\n[engine]\nmax_loras = 1\nmax_lora_rank = 1\nmax_num_seqs = 1"
    )
    monkeypatch.setenv("MEDLEY_PORT", "2")
    monkeypatch.setenv("MEDLEY_GRPC_PORT", "2")
    monkeypatch.setenv("MEDLEY_ENGINE__MAX_LORAS", "2")
    monkeypatch.setenv("MEDLEY_ENGINE__MAX_LORA_RANK", "2")
    settings = load_settings(file, {"port": 3, "engine": {"max_loras": 3}})
    assert (settings.port, settings.grpc_port, settings.host) == (3, 2, "::1")
    engine = settings.engine
    assert (engine.max_loras, engine.max_lora_rank, engine.max_num_seqs, engine.max_new_tokens) == (3, 2, 1, 0)


def test_settings_pass_the_section_of_vllm_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(
        tmp_path,
        "[engine.vllm]\ntensor_parallel_size = 2\nenforce_eager = true\n"
        "[engine.vllm.compilation_config]\ncudagraph_capture_sizes = [1, 2]",
    )
    monkeypatch.setenv("MEDLEY_ENGINE__VLLM__GPU_MEMORY_UTILIZATION", "0.8")
    assert load_settings(file).engine.vllm == {
        "tensor_parallel_size": 2,
        "enforce_eager": True,
        "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
        "gpu_memory_utilization": "0.8",
    }


def test_settings_from_yaml(tmp_path: Path) -> None:
    file = written(tmp_path, "log: {format: json}\n", "medley.yaml")
    assert load_settings(file).log.format == "json"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot"),
        ("[engine]\nmax_lora = 1", r"engine\.max_lora"),
        ("port = 70000", "port"),
        ("[engine]\nname = 'other'", r"engine\.name"),
        ("port = ", "cannot read"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        load_settings(written(tmp_path, text))


def test_settings_misspelt_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_ENGINE__MAX_LORA", "2")
    with pytest.raises(InvalidArgumentError, match=r"engine\.max_lora"):
        load_settings()


@pytest.mark.parametrize("name", ["none.toml", "medley.ini"])
def test_settings_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, "", "medley.ini")
    with pytest.raises(InvalidArgumentError, match="configuration file"):
        load_settings(tmp_path / name)


def test_settings_of_shared_places_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REGISTRY__URL": "postgresql://me:secret@host/name",
        "STORE__URL": "s3://bucket/folder",
        "STORE__OPTIONS__KEY": "secret",
        "CATALOG": '{"allowed_sources": ["s3://bucket/"]}',
        "CATALOG__SOURCE_OPTIONS__S3__KEY": "secret",
        "ACCESS__ALLOW_OPEN": "true",
    }.items():
        monkeypatch.setenv(f"MEDLEY_{name}", value)
    settings = load_settings()
    assert settings.store.options == {"key": "secret"}
    assert settings.catalog.allowed_sources == ("s3://bucket/",)
    assert settings.catalog.source_options == {"s3": {"key": "secret"}}
    assert settings.access.allow_open
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"store": {"sweep_every_s": 0}}, r"store\.sweep_every_s"),
        ({"registry": {"poll_s": 0}}, r"registry\.poll_s"),
        ({"catalog": {"upload_lease_s": -1}}, r"catalog\.upload_lease_s"),
        ({"tls": {"cert_file": "a.pem"}}, r"tls\.cert_file"),
    ],
)
def test_settings_of_shared_places_out_of_range_are_refused(given: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        load_settings(None, given)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_sample_rates_come_from_the_groups_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_EVALUATION", '{"sample_rates": {"my-tweets": 1.0, "base": 0.05}}')
    monkeypatch.setenv("MEDLEY_EVALUATION__STORE_TEXTS", "true")
    evaluation = load_settings().evaluation
    assert (evaluation.sample_rates, evaluation.store_texts) == ({"my-tweets": 1.0, "base": 0.05}, True)


def test_share_beyond_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_EVALUATION__SAMPLE_RATE", "3")
    with pytest.raises(InvalidArgumentError, match="sample_rate"):
        load_settings()
