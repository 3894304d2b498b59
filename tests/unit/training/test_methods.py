"""Every method, on both kinds of base: what it trains, what it leaves alone, and who reads its result."""

import hashlib
import json
from dataclasses import replace

import pytest

from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from adapters.errors import UnsupportedAdapterError
from adapters.manifest import AdapterKind
from tests.fixtures.recipes import TICKETS
from training.data.adaptation import Case
from training.data.config import MixtureConfig
from training.errors import TrainingConfigError

pytestmark = pytest.mark.torch
ABOUT = f"""{TICKETS}
loop: {{max_steps: 3, learning_rate: 0.05, warmup_steps: 1, evaluate_every: 3, checkpoint_every: 3, log_every: 3,
  relative_updates: false, num_threads: 2, tensorboard: false}}
"""
SECTIONS = {
    "lora": "lora: {rank: 4, alpha: 8, target_modules: [q, v], rank_pattern: {v: 2}, alpha_pattern: {v: 4}}",
    "dora": "lora: {rank: 2, alpha: 4, dora: true, dropout: 0.1}",
    "rslora": "lora: {rank: 4, alpha: 4, rslora: true, init: gaussian}",
    "qlora": "qlora: {rank: 2, alpha: 4}",
    "prompt": "prompt: {num_virtual_tokens: 5, init: vocabulary}",
    "p-tuning": "p-tuning: {num_virtual_tokens: 4, hidden_size: 16}",
    "prefix": "prefix: {num_virtual_tokens: 3}",
    "prefix-projection": "prefix: {num_virtual_tokens: 3, projection: true, hidden_size: 8}",
    "ia3": "ia3: {}",
    "norms": "selective: {tensors: norms}",
}
KINDS = {
    "prompt": AdapterKind.PROMPT,
    "p-tuning": AdapterKind.PROMPT,
    "prefix": AdapterKind.PREFIX,
    "prefix-projection": AdapterKind.PREFIX,
    "ia3": AdapterKind.IA3,
    "norms": AdapterKind.NORM,
}


def _recipe(tmp_path, base, section):
    from training.config import load_adapter_recipe
    from training.methods import METHODS

    path = tmp_path / "recipe.yaml"
    path.write_text(f"{ABOUT}\nbase: {base}\n{section}\n")
    return load_adapter_recipe(section.split(":")[0], METHODS, path)


def _train(tmp_path, base, data, section):
    """Train by a recipe's section; return its result folder and what was trained."""
    from training.recipes.adaptation import RunPlaces
    from training.recipes.train import train_adapter

    places = RunPlaces(data, tmp_path / "run", tmp_path / "out")
    return places.out, train_adapter(_recipe(tmp_path, base, section), places, resume=False)


def _hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _changed(before, after):
    """Return the names of the tensors that two model folders do not share."""
    import torch
    from safetensors.torch import load_file

    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name].float(), new[name].float())}


@pytest.mark.parametrize("case", SECTIONS)
def test_train_adapter_servable_method_is_read_by_the_server_and_by_peft(case, tmp_path, tiny_base, tiny_data):
    from peft import PeftModel

    from training.base_model import load_base
    from training.peft_warnings import without_false_alarms

    before = _hashes(tiny_base)
    out, _ = _train(tmp_path, tiny_base, tiny_data, SECTIONS[case])
    assert _hashes(tiny_base) == before
    spec = read_base_spec(tiny_base)
    read_adapter(out, spec, CodecLimits())
    manifest = inspect_adapter(out, spec, CodecLimits(), "tickets")
    assert manifest.kind == KINDS.get(case, AdapterKind.LORA)
    assert manifest.base_fingerprint == spec.fingerprint
    with without_false_alarms():
        assert PeftModel.from_pretrained(load_base(str(tiny_base)).model, out).active_peft_config.peft_version


@pytest.mark.parametrize("case", ["lora", "qlora", "prompt", "p-tuning", "ia3", "norms"])
def test_train_adapter_decoder_only_base_is_read_by_the_server(case, tmp_path, tiny_llama, tiny_data):
    section = SECTIONS[case].replace("[q, v]", "[q_proj, v_proj]").replace("{v:", "{v_proj:")
    out, _ = _train(tmp_path, tiny_llama, tiny_data, section)
    read_adapter(out, read_base_spec(tiny_llama), CodecLimits())
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_prepare_prefix_on_a_decoder_only_base_is_refused(tmp_path, tiny_llama):
    from training.recipes.train import prepare

    with pytest.raises(TrainingConfigError, match="soft prompt"):
        prepare(_recipe(tmp_path, tiny_llama, "prefix: {}"))


def test_prepare_lora_on_a_layer_the_base_lacks_is_refused(tmp_path, tiny_base):
    from training.recipes.train import prepare

    with pytest.raises(TrainingConfigError, match="does not fit the base"):
        prepare(_recipe(tmp_path, tiny_base, "lora: {target_modules: [q_proj]}"))


@pytest.mark.parametrize("kind", ["tiny_base", "tiny_llama"])
def test_train_full_every_tensor_changes_and_the_result_is_a_base(kind, request, tmp_path, tiny_data):
    base = request.getfixturevalue(kind)
    out, prepared = _train(tmp_path, base, tiny_data, "full: {}")
    names = {name for name, _ in prepared.model.named_parameters()}
    assert _changed(base, out) == names
    assert json.loads((out / "medley.json").read_text())["model_id"] == "tickets"
    assert read_base_spec(out).fingerprint == read_base_spec(base).fingerprint
    assert "medley serve --model" in (out / "card.md").read_text()
    assert not prepared.form.can_be_pushed


@pytest.mark.parametrize(
    ("section", "is_listed"),
    [
        ("selective: {tensors: biases}", lambda name: "relative_attention_bias" in name),
        ("selective: {tensors: last-layers}", lambda name: ".block.1." in name),
        ("selective: {tensors: last-layers, num_layers: 9}", lambda name: ".block." in name),
    ],
)
def test_train_selective_only_the_listed_tensors_change(section, is_listed, tmp_path, tiny_tokenizer, tiny_data):
    from training.config import ModelShape
    from training.export import export_model
    from training.model import build_model

    shape = ModelShape(vocab_size=400, d_model=32, d_kv=8, num_heads=2, d_ff=48, num_layers=2)
    export_model(build_model(shape, tiny_tokenizer, seed=1), tiny_tokenizer, tmp_path / "base")
    out, prepared = _train(tmp_path, tmp_path / "base", tiny_data, section)
    listed = {name for name, _ in prepared.model.named_parameters() if is_listed(name)}
    assert listed
    assert _changed(tmp_path / "base", out) == listed


def test_train_selective_of_norms_only_the_norms_change(tmp_path, tiny_base, tiny_data):
    from safetensors.torch import load_file

    from training.peft_warnings import without_false_alarms
    from training.recipes.train import prepare

    out, prepared = _train(tmp_path, tiny_base, tiny_data, SECTIONS["norms"])
    with without_false_alarms():
        fresh = prepare(_recipe(tmp_path, tiny_base, SECTIONS["norms"])).model.state_dict()
    trained = {name for name, value in prepared.model.state_dict().items() if not value.equal(fresh[name])}
    assert trained == {name for name in fresh if ".ln_tuning_layers." in name}
    assert len(load_file(out / "adapter_model.safetensors")) == len(trained)


def test_prepare_selective_base_without_biases_is_refused(tmp_path, tiny_llama):
    from training.recipes.train import prepare

    with pytest.raises(TrainingConfigError, match="has no biases"):
        prepare(_recipe(tmp_path, tiny_llama, "selective: {tensors: biases}"))


@pytest.mark.parametrize("kind", ["tiny_base", "tiny_llama"])
def test_train_bottleneck_is_refused_by_the_server_by_name(kind, request, tmp_path, tiny_data):
    import torch

    from training.base_model import load_base
    from training.bottleneck import load_bottlenecks

    base = request.getfixturevalue(kind)
    before = _hashes(base)
    out, prepared = _train(tmp_path, base, tiny_data, "bottleneck: {width: 4}")
    assert _hashes(base) == before
    with pytest.raises(UnsupportedAdapterError, match="BOTTLENECK"):
        read_adapter(out, read_base_spec(base), CodecLimits())
    assert not (out / "medley.json").exists()
    assert "does not serve" in (out / "card.md").read_text()
    trained = {name: value for name, value in prepared.model.named_parameters() if value.requires_grad}
    assert all(".down." in name or ".up." in name for name in trained)
    loaded = load_base(str(base)).model
    load_bottlenecks(loaded, out)
    again = dict(loaded.named_parameters())
    for name, value in trained.items():
        torch.testing.assert_close(again[name], value.float(), rtol=0, atol=0)


def test_add_bottlenecks_untrained_model_answers_as_the_base(tiny_base):
    import torch

    from training.base_model import load_base
    from training.bottleneck import add_bottlenecks

    ids = torch.arange(3, 12).reshape(1, -1)
    plain, changed = (load_base(str(tiny_base)).model for _ in range(2))
    add_bottlenecks(changed, width=4, after="both")
    torch.testing.assert_close(
        plain(input_ids=ids, labels=ids).logits, changed(input_ids=ids, labels=ids).logits, rtol=0, atol=0
    )
    both = sum(parameter.requires_grad for parameter in changed.parameters())
    pfeiffer = load_base(str(tiny_base)).model
    add_bottlenecks(pfeiffer, width=4, after="feed-forward")
    assert both // sum(parameter.requires_grad for parameter in pfeiffer.parameters()) == 2


def test_add_bottlenecks_model_of_unknown_names_is_refused():
    import torch

    from training.bottleneck import add_bottlenecks

    with pytest.raises(TrainingConfigError, match="no layer"):
        add_bottlenecks(torch.nn.Sequential(torch.nn.Linear(2, 2)), width=4, after="both")


@pytest.mark.parametrize("under", ["lora", "full"])
def test_train_multitask_learns_from_every_source(under, tmp_path, tiny_base, tiny_data):
    from training.recipes.adaptation import RunPlaces
    from training.recipes.train import train_adapter

    recipe = _recipe(tmp_path, tiny_base, f"multitask: {{under: {under}}}")
    [summaries] = recipe.data.sources
    topics = replace(summaries, name="topics", columns={"text": "dialogue", "references": "topics"})
    data = replace(recipe.data, sources=(summaries, topics), mixture=MixtureConfig(cap=4))
    places = RunPlaces(tiny_data, tmp_path / "run", tmp_path / "out")
    prepared = train_adapter(replace(recipe, data=data), places, resume=False)
    assert "2 sources in proportion to their size, up to 4 examples each" in (places.out / "card.md").read_text()
    assert (places.out / ("adapter_config.json" if under == "lora" else "config.json")).is_file()
    assert prepared.form.can_be_pushed == (under == "lora")


def test_answers_meant_of_a_chain_of_thought_are_the_answers_alone(tmp_path, tiny_base):
    from training.recipes.adaptation import answers_meant

    recipe = _recipe(tmp_path, tiny_base, "lora: {}")
    texts, cases = ["2 and 2 are 4. So the answer is B.", "A"], [Case("", "", ("B",), choices=("A", "B"))] * 2
    assert answers_meant(texts, cases, recipe) == texts
    reasoned = replace(recipe.data, instruction=replace(recipe.data.instruction, chain_of_thought=True))
    assert answers_meant(texts, cases, replace(recipe, data=reasoned)) == ["B", "A"]


def test_train_multitask_of_one_source_is_refused(tmp_path, tiny_base, tiny_data):
    with pytest.raises(TrainingConfigError, match="two or more"):
        _train(tmp_path, tiny_base, tiny_data, "multitask: {}")


@pytest.mark.parametrize("num_virtual_tokens", [20, 100])
@pytest.mark.parametrize("init", ["random", "vocabulary", "text", "class-labels"])
def test_prepare_prompt_trains_n_times_d_parameters(init, num_virtual_tokens, tmp_path, tiny_base):
    from training.recipes.train import prepare

    section = f"prompt: {{num_virtual_tokens: {num_virtual_tokens}, init: {init}, class_labels: [yes, tickets]}}"
    prepared = prepare(_recipe(tmp_path, tiny_base, section.replace("yes", "'yes'")))
    trained = [parameter for parameter in prepared.model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == num_virtual_tokens * 32
    is_word = (trained[0][:, None] == prepared.base.model.shared.weight).all(-1).any(-1)
    assert is_word[2:].all() == (init != "random")


def test_first_rows_of_class_labels_are_the_labels_mean_embeddings(tiny_base):
    import torch

    from training.base_model import load_base
    from training.methods import PromptMethod
    from training.recipes.prompt import first_rows

    base = load_base(str(tiny_base))
    method = PromptMethod(num_virtual_tokens=3, init="class-labels", class_labels=("table", "Person1 books"))
    rows = first_rows(base, method)
    for row, label in zip(rows, method.class_labels, strict=False):
        ids = base.tokenizer(label, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(row, base.model.shared.weight[ids].mean(0))
    text = first_rows(base, replace(method, init="text", init_text="a table"))
    ids = base.tokenizer("a table", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(text, base.model.shared.weight[(ids * 3)[:3]])


@pytest.mark.parametrize("base", ["no/such-folder/here", "!"])
def test_load_base_that_is_nowhere_is_refused(base, monkeypatch):
    from training.base_model import load_base

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrainingConfigError, match="neither a folder nor"):
        load_base(base)


def test_load_base_folder_without_a_model_is_refused(tmp_path):
    from training.base_model import load_base

    with pytest.raises(TrainingConfigError, match="cannot be loaded"):
        load_base(str(tmp_path))


def test_load_base_hub_id_is_fetched_and_named(tiny_base, monkeypatch):
    import huggingface_hub

    from training.base_model import load_base

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or tiny_base)
    base = load_base("google/flan-t5-base")
    assert (asked, base.name, base.folder) == (["google/flan-t5-base"], "google/flan-t5-base", tiny_base)
