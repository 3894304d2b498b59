import json
from pathlib import Path

import pytest

import server.engine.factory
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.engine.factory import EngineConfig, create_engine
from server.engine.fake import FakeEngine


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return base_of(tmp_path, architectures=["LlamaForCausalLM"])


@pytest.fixture
def _vllm_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine.factory, "find_spec", lambda name: name)


def base_of(folder: Path, **config: object) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def chosen(monkeypatch: pytest.MonkeyPatch, config: EngineConfig, model: str) -> str:
    """Which engine would be made; none is, as that imports much."""
    for name in ("native", "vllm", "fake"):
        monkeypatch.setattr(server.engine.factory, f"_{name}", lambda config, model, name=name: name)
    return str(create_engine(config, model))


@pytest.mark.parametrize(
    ("architecture", "engine"),
    [
        ("T5ForConditionalGeneration", "native"),
        ("LlamaForCausalLM", "vllm"),
        ("Qwen3ForCausalLM", "vllm"),
        ("MistralForCausalLM", "vllm"),
    ],
)
def test_engine_is_chosen_by_the_bases_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str, engine: str
) -> None:
    assert chosen(monkeypatch, EngineConfig(), base_of(tmp_path, architectures=[architecture])) == engine


@pytest.mark.parametrize("name", ["native", "vllm", "fake"])
def test_engine_that_is_named_is_taken_whatever_the_base(
    monkeypatch: pytest.MonkeyPatch, llama: str, name: str
) -> None:
    assert chosen(monkeypatch, EngineConfig(name=name), llama) == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["BertModel"]}, r"'BertModel'.*T5ForConditionalGeneration.*ForCausalLM.*--engine"),
        ({"architectures": []}, "no engine is made for ''"),
        ({}, "no engine is made for ''"),
    ],
)
def test_base_that_no_engine_is_made_for_is_refused(tmp_path: Path, config: dict[str, object], said: str) -> None:
    with pytest.raises(FailedPreconditionError, match=said):
        create_engine(EngineConfig(), base_of(tmp_path, **config))


def test_base_with_an_encoder_is_refused_for_vllm(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="has an encoder"):
        create_engine(EngineConfig(name="vllm"), base_of(tmp_path, architectures=["T5ForConditionalGeneration"]))


def test_base_without_a_readable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"config\.json"):
        create_engine(EngineConfig(), str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FailedPreconditionError, match=r"config\.json"):
        create_engine(EngineConfig(), str(tmp_path))


def test_hub_model_without_a_hub_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FailedPreconditionError, match=r"'some-owner/some-model' is no folder here, and the hub"):
        create_engine(EngineConfig(), "some-owner/some-model")


def test_decoder_only_base_without_vllm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, llama: str) -> None:
    monkeypatch.setattr(server.engine.factory, "find_spec", lambda name: None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'medley\[vllm\]'.*docs/engines\.md"):
        create_engine(EngineConfig(), llama)


@pytest.mark.usefixtures("_vllm_installed")
def test_vllm_engine_takes_the_section_and_leaves_its_defaults_to_vllm(
    monkeypatch: pytest.MonkeyPatch, llama: str
) -> None:
    made: list[object] = []
    monkeypatch.setattr("server.engine.vllm.engine.VllmEngine", made.append)
    create_engine(EngineConfig(vllm={"tensor_parallel_size": 2}, max_model_len=4096), llama)
    (config,) = made
    from server.engine.vllm.config import VllmEngineConfig

    assert config == VllmEngineConfig(
        model=llama, dtype="auto", max_model_len=4096, arguments={"tensor_parallel_size": 2}
    )


@pytest.mark.usefixtures("_vllm_installed")
def test_quantization_that_vllm_has_not_is_refused(llama: str) -> None:
    with pytest.raises(InvalidArgumentError, match="quantization"):
        create_engine(EngineConfig(quantization="bitsandbytes-4bit"), llama)


async def test_fake_engine_has_the_defaults_of_the_native_one() -> None:
    engine = create_engine(EngineConfig(name="fake"), "")
    assert isinstance(engine, FakeEngine)
    await engine.start()
    info = engine.info
    await engine.stop()
    assert (info.max_num_seqs, info.max_model_len, info.max_new_tokens) == (32, 1024, 256)
