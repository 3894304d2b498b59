"""Recipe files: strict keys, strict kinds, overrides."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import training.config
from training.config import BaseRecipe, fingerprint, load_adapter_recipe, load_recipe, method_of
from training.errors import TrainingConfigError
from training.methods import METHODS

CONFIGS = Path(training.config.__file__).parent / "configs"
SHIPPED = {
    "banking-intent": "lora",
    "clinic-note": "lora",
    "dialogsum": "lora",
    "dialogsum-biases": "selective",
    "dialogsum-bottleneck": "bottleneck",
    "dialogsum-dora": "lora",
    "dialogsum-full": "full",
    "dialogsum-ia3": "ia3",
    "dialogsum-last-layers": "selective",
    "dialogsum-norms": "selective",
    "dialogsum-p-tuning": "p-tuning",
    "dialogsum-prefix": "prefix",
    "dialogsum-prompt": "prompt",
    "dialogsum-qlora": "qlora",
    "dialogsum-topic": "lora",
    "film-polarity": "lora",
    "flan-t5-base-dialogsum-full": "full",
    "flan-t5-base-dialogsum-lora": "lora",
    "flan-t5-base-dialogsum-prompt": "prompt",
    "summaries-multitask": "multitask",
    "tweetsumm": "lora",
}


def test_load_recipe_of_the_base_comes_back_from_yaml_unchanged(tmp_path):
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml")
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(_plain(asdict(recipe))))
    assert load_recipe(BaseRecipe, copy) == recipe


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_load_adapter_recipe_shipped_file_comes_back_from_yaml_unchanged(name, tmp_path):
    recipe = load_adapter_recipe(SHIPPED[name], METHODS, CONFIGS / f"{name}.yaml")
    assert recipe.adapter.name == name
    values = _plain(asdict(recipe))
    values[SHIPPED[name]] = values.pop("method")
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(values))
    assert load_adapter_recipe(SHIPPED[name], METHODS, copy) == recipe


def test_shipped_recipes_are_all_listed():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"base", *SHIPPED}


@pytest.mark.parametrize("override", ["loop.max_step=3", "nonsense=1", "model.depth=2"])
def test_load_recipe_unknown_key_is_refused_with_its_name(override):
    with pytest.raises(TrainingConfigError, match=override.split("=")[0].split(".")[-1]):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


@pytest.mark.parametrize("override", ["loop.max_steps=many", "loop.bfloat16=1", "loop=3", "length_limits=[1, 2, 3]"])
def test_load_recipe_wrong_kind_is_refused(override):
    with pytest.raises(TrainingConfigError):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


@pytest.mark.parametrize("override", ["loop.max_steps", "loop.max_steps.deep=1"])
def test_load_recipe_malformed_override_is_refused(override):
    with pytest.raises(TrainingConfigError):
        load_recipe(BaseRecipe, CONFIGS / "base.yaml", [override])


def test_load_recipe_missing_key_is_refused(tmp_path):
    path = tmp_path / "part.yaml"
    path.write_text("data: {sources: []}")
    with pytest.raises(TrainingConfigError, match="adapter"):
        load_adapter_recipe("lora", METHODS, path)


def test_load_recipe_override_changes_one_value():
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.max_steps=7", "model.d_ff=8"])
    assert (recipe.loop.max_steps, recipe.model.d_ff) == (7, 8)


def test_fingerprint_length_may_differ_but_rate_may_not():
    recipe = load_recipe(BaseRecipe, CONFIGS / "base.yaml")
    longer = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.max_steps=9", "loop.log_every=1"])
    faster = load_recipe(BaseRecipe, CONFIGS / "base.yaml", ["loop.learning_rate=0.5"])
    assert fingerprint(recipe) == fingerprint(longer) != fingerprint(faster)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def test_every_method_has_a_shipped_recipe():
    assert set(SHIPPED.values()) == set(METHODS)


def _write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_load_adapter_recipe_extends_another_file_but_for_its_method(tmp_path):
    parent = (CONFIGS / "dialogsum.yaml").read_text()
    _write(tmp_path, "dialogsum.yaml", parent)
    child = _write(tmp_path, "child.yaml", "extends: dialogsum.yaml\nadapter: {name: child}\nia3: {}\nloop: {seed: 4}")
    recipe = load_adapter_recipe("ia3", METHODS, child)
    whole = load_adapter_recipe("lora", METHODS, tmp_path / "dialogsum.yaml")
    assert (recipe.adapter.name, recipe.loop.seed) == ("child", 4)
    assert recipe.data == whole.data
    assert replace(recipe.adapter, name="dialogsum") == whole.adapter


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: self.yaml", "extends names another recipe file"),
        ("extends: 3", "extends names another recipe file"),
        ("extends: missing.yaml", "missing.yaml"),
        ("[1, 2]", "expected a mapping"),
        ("prompt: {}", "medley train prompt"),
        ("method: {rank: 3}", "unknown key 'method'"),
        ("lora: {rank: 0}", "rank is 1 or more"),
        ("lora: {dropout: 1.0}", "dropout"),
        ("lora: {init: pissa}", "change the base's own weights"),
        (
            "extends: dialogsum.yaml\nadapter: {metrics: [rouge, nonsense]}",
            "adapter.metrics: there is no metric .*nonsense.*bleu",
        ),
        ("extends: dialogsum.yaml\nadapter: {metrics: rouge}", "adapter.metrics"),
    ],
)
def test_load_adapter_recipe_mistake_is_refused(tmp_path, text, message):
    _write(tmp_path, "dialogsum.yaml", (CONFIGS / "dialogsum.yaml").read_text())
    path = _write(tmp_path, "self.yaml", text)
    with pytest.raises(TrainingConfigError, match=message):
        load_adapter_recipe("lora", METHODS, path)


def test_load_adapter_recipe_metrics_are_optional_and_kept_in_order(tmp_path):
    parent = CONFIGS / "dialogsum.yaml"
    assert load_adapter_recipe("lora", METHODS, parent).adapter.metrics == ()
    recipe = load_adapter_recipe("lora", METHODS, parent, ["adapter.metrics=[chrf, rouge]"])
    assert recipe.adapter.metrics == ("chrf", "rouge")


@pytest.mark.parametrize(
    ("method", "section", "message"),
    [
        ("prompt", "{num_virtual_tokens: 129}", "1 to 128"),
        ("prompt", "{init: nothing}", "init is one of"),
        ("prompt", "{init: class-labels}", "needs class_labels"),
        ("p-tuning", "{network: tree}", "mlp or lstm"),
        ("prefix", "{num_virtual_tokens: 0}", "1 to 128"),
        ("ia3", "{target_modules: [k], feedforward_modules: [wo]}", "among its target_modules"),
        ("selective", "{tensors: some}", "tensors is one of"),
        ("bottleneck", "{after: lunch}", "both or feed-forward"),
        ("multitask", "{under: prompt}", "lora or full"),
    ],
)
def test_load_adapter_recipe_section_out_of_range_is_refused(tmp_path, method, section, message):
    path = _write(tmp_path, "recipe.yaml", f"{method}: {section}")
    with pytest.raises(TrainingConfigError, match=message):
        load_adapter_recipe(method, METHODS, path)


def test_fingerprint_method_counts():
    path = CONFIGS / "dialogsum.yaml"
    recipe = load_adapter_recipe("lora", METHODS, path)
    wider = load_adapter_recipe("lora", METHODS, path, ["lora.rank=64"])
    records = load_adapter_recipe("lora", METHODS, path, ["loop.tensorboard=false", "loop.keep_checkpoints=9"])
    assert fingerprint(recipe) == fingerprint(records) != fingerprint(wider)


def test_method_of_a_recipe_is_its_own_section_or_that_of_the_file_it_extends(tmp_path):
    _write(tmp_path, "parent.yaml", "lora: {}")
    assert method_of(METHODS, _write(tmp_path, "own.yaml", "extends: parent.yaml\nia3: {}")) == "ia3"
    assert method_of(METHODS, _write(tmp_path, "none.yaml", "extends: parent.yaml")) == "lora"


def test_method_of_a_recipe_without_sections_is_full(tmp_path):
    assert method_of(METHODS, _write(tmp_path, "recipe.yaml", "base: x")) == "full"


def test_method_of_two_sections_is_refused(tmp_path):
    with pytest.raises(TrainingConfigError, match="several methods: ia3, lora"):
        method_of(METHODS, _write(tmp_path, "recipe.yaml", "lora: {}\nia3: {}"))


def test_method_of_a_file_that_extends_itself_is_refused(tmp_path):
    with pytest.raises(TrainingConfigError, match="extends itself"):
        method_of(METHODS, _write(tmp_path, "recipe.yaml", "extends: recipe.yaml"))
