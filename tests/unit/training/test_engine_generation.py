"""Generation through the engine on a tiny random base: order, limits, sampling, and what falls back to transformers."""

import pytest

pytestmark = pytest.mark.torch
PROMPTS = ["Hello, I want a table.", "Certainly.", "What is your name, please? " * 8]


def drawn(base, config, seed=3):
    """A PEFT model over the tiny base, its adapter's weights drawn by the seed."""
    import torch
    from peft import get_peft_model

    from training.base_model import load_base

    model = get_peft_model(load_base(str(base)).model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def write_adapter(tmp_path, tiny_base):
    """Return a function that writes such an adapter's folder."""

    def write(name, config, seed=3):
        from training.export import export_adapter

        export_adapter(drawn(tiny_base, config, seed), tmp_path / name, "tiny-base")
        return tmp_path / name

    return write


def lora(**options):
    from peft import LoraConfig, TaskType

    return LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["q", "v", "wo"], **{"r": 4, **options})


def prompt():
    from peft import PromptTuningConfig, TaskType

    return PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3, token_dim=32)


def by_transformers(base, adapter, max_new_tokens=6):
    from peft import PeftModel

    from training.base_model import load_base
    from training.evaluate import generate_texts

    loaded = load_base(str(base))
    model = loaded.model if adapter is None else PeftModel.from_pretrained(loaded.model, adapter)
    return generate_texts(model.eval(), loaded.tokenizer, PROMPTS, max_new_tokens)


def test_folder_answers_equal_transformers_for_base_lora_and_prompt(tiny_base, write_adapter):
    from training.answers import FolderAnswers

    folders = [None, write_adapter("lora", lora()), write_adapter("prompt", prompt())]
    expected = [by_transformers(tiny_base, folder) for folder in folders]
    with FolderAnswers(tiny_base, 6) as answers:
        found = [answers.answer([folder] if folder else [], PROMPTS) for folder in folders]
        assert found == expected
        # An adapter retrained in the same folder is another adapter.
        retrained = answers.answer([write_adapter("lora", lora(), seed=4)], PROMPTS)
    assert retrained == by_transformers(tiny_base, folders[1])
    assert len({tuple(each) for each in [*found, retrained]}) == 4


def test_answers_of_model_engine_and_transformers_agree_and_leave_the_model_alone(tiny_base, write_adapter):
    import torch

    from training.answers import answers_of_model
    from training.base_model import load_base

    folder, base = write_adapter("lora", lora()), load_base(str(tiny_base))
    model = drawn(tiny_base, lora()).eval()
    before, num_threads = [weight.clone() for weight in model.parameters()], torch.get_num_threads()
    assert answers_of_model(base, model, PROMPTS, 6) == by_transformers(tiny_base, folder)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.get_num_threads() == num_threads


def test_answers_of_model_without_adapter_answers_itself(tiny_base):
    import torch

    from training.answers import answers_of_model
    from training.base_model import load_base

    base = load_base(str(tiny_base))
    with torch.no_grad():
        base.model.shared.weight.copy_(
            torch.randn(base.model.shared.weight.shape, generator=torch.Generator().manual_seed(2))
        )
    found = answers_of_model(base, base.model, PROMPTS, 6)
    assert found != by_transformers(tiny_base, None)


def test_engine_serves_goes_by_what_the_codec_accepts(tiny_base, write_adapter):
    from peft import LoKrConfig

    from training.engine_generation import engine_serves

    assert engine_serves(tiny_base)
    assert engine_serves(tiny_base, [write_adapter("lora", lora()), write_adapter("prompt", prompt())])
    assert not engine_serves(tiny_base, [write_adapter("wide", lora(r=65))])
    assert not engine_serves(tiny_base, [write_adapter("lokr", LoKrConfig(r=4, target_modules=["q", "v"]))])


def test_folder_answers_of_what_the_engine_does_not_serve_come_from_transformers(tiny_base, write_adapter):
    from training.answers import FolderAnswers
    from training.engine_generation import Sampling
    from training.errors import EvaluationError

    wide = write_adapter("wide", lora(r=65))
    with FolderAnswers(tiny_base, 6) as answers:
        assert answers.answer([wide], PROMPTS) == by_transformers(tiny_base, wide)
        with pytest.raises(EvaluationError, match="one adapter at a time"):
            answers.answer([wide, write_adapter("prompt", prompt())], PROMPTS)
    with FolderAnswers(tiny_base, 6, Sampling(temperature=1.0)) as answers, pytest.raises(EvaluationError):
        answers.answer([wide], PROMPTS)


def test_generate_sampled_is_seeded_and_differs_by_row(tiny_base):
    from training.engine_generation import EngineGenerator, Sampling

    prompts = [[5, 6, 7, 1]] * 3
    with EngineGenerator(tiny_base, 8) as engine:
        sampled = engine.generate(prompts, sampling=Sampling(temperature=1.5, seed=2))
        assert engine.generate(prompts, sampling=Sampling(temperature=1.5, seed=2)) == sampled
        assert engine.generate(prompts, sampling=Sampling(temperature=1.5, seed=9)) != sampled
        assert len(set(sampled)) == 3
        assert len(set(engine.generate(prompts))) == 1


def test_generate_refused_prompt_is_one_line_and_the_engine_goes_on(tiny_base, write_adapter):
    from training.engine_generation import EngineGenerator
    from training.errors import EvaluationError

    loras = [write_adapter("lora", lora()), write_adapter("other", lora())]
    with EngineGenerator(tiny_base, 4) as engine:
        with pytest.raises(EvaluationError, match="vocabulary"):
            engine.generate([[5, 1], [4000, 1]])
        with pytest.raises(EvaluationError, match="at most one weight adapter"):
            engine.generate([[5, 1]], loras)
        assert len(engine.generate([[5, 1], [6, 1]], loras[:1])) == 2


def test_folder_answers_of_a_missing_base_is_one_line(tmp_path, monkeypatch):
    from training.answers import FolderAnswers
    from training.errors import TrainingConfigError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrainingConfigError, match="neither a folder nor"):
        FolderAnswers(tmp_path / "nowhere", 4)
