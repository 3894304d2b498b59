"""Configs, manifests, templates and cards that lie, or ask for what nobody computes."""

import json
import pickle

from adapters.errors import (
    AdapterTooLargeError,
    InvalidAdapterError,
    PromptTemplateError,
    UnsupportedAdapterError,
    WrongBaseError,
)
from tests.fixtures.adapters import CONFIG, lora_config
from tests.hostile.cases import LIMITS, Cases

CASES = Cases()
_SOUND = json.dumps(lora_config())


def _config_json() -> None:
    CASES.config("config-of-one-space", "not valid JSON", " ")
    CASES.config("config-is-a-list", "must be a JSON object", "[]")
    CASES.config("config-key-twice", "appears twice", '{"r": 1, ' + _SOUND[1:])
    CASES.config("config-nested-key-twice", "appears twice", '{"x": {"a": 1, "a": 2}, ' + _SOUND[1:])
    CASES.config("config-nests-too-deep", "deeper than 16", '{"x": ' + "[" * 16 + "]" * 16 + ", " + _SOUND[1:])
    CASES.config("config-nests-without-end", "not valid JSON", '{"x": ' + "[" * 100_000)
    CASES.config("config-with-nan", "NaN is not JSON", _SOUND.replace('"lora_alpha": 8', '"lora_alpha": NaN'))
    CASES.config("config-with-infinity", "not JSON", _SOUND.replace('"lora_alpha": 8', '"lora_alpha": -Infinity'))
    CASES.config("config-with-1e999", "too large", _SOUND.replace('"lora_alpha": 8', '"lora_alpha": 1e999'))
    CASES.config("config-of-a-million-digits", "not valid JSON", '{"r": ' + "9" * 200_000 + "}")
    CASES.config("config-with-a-byte-order-mark", "not valid JSON", "\ufeff" + _SOUND)
    CASES.config("config-in-utf-16", "not text in UTF-8", lambda: _SOUND.encode("utf-16"))
    CASES.config("config-with-half-a-surrogate", "not valid JSON", '{"x": "\\udfff", ' + _SOUND[1:])
    CASES.config("config-with-a-comment", "not valid JSON", "// hello\n" + _SOUND)
    CASES.config("config-with-data-behind", "not valid JSON", _SOUND + _SOUND)
    CASES.config("config-is-a-pickle", "not text in UTF-8", lambda: pickle.dumps({"peft_type": "LORA"}))
    CASES.config("config-over-its-limit", "bytes", " " * LIMITS.max_text_bytes + _SOUND, AdapterTooLargeError)


def _config_fields() -> None:
    fields: dict[str, tuple[str, dict[str, object], type[InvalidAdapterError]]] = {
        "type-missing": ("needs peft_type", {"peft_type": None}, InvalidAdapterError),
        "type-unknown": ("not supported", {"peft_type": "EVIL\x1b[2J"}, UnsupportedAdapterError),
        "type-of-a-mixture": ("one by one", {"peft_type": "XLORA"}, UnsupportedAdapterError),
        "type-of-other-tensors": (
            "does not belong",
            {"peft_type": "VERA", "lora_alpha": None, "init_lora_weights": None},
            InvalidAdapterError,
        ),
        "rank-0-in-config": ("r must be a whole number", {"r": 0}, InvalidAdapterError),
        "rank-negative": ("r must be a whole number", {"r": -4}, InvalidAdapterError),
        "rank-of-text": ("r must be a whole number", {"r": "4"}, InvalidAdapterError),
        "rank-true": ("r must be a whole number", {"r": True}, InvalidAdapterError),
        "rank-2-to-the-64": ("r must be a whole number", {"r": 2**64}, InvalidAdapterError),
        "alpha-of-text": ("lora_alpha must be a finite number", {"lora_alpha": "8"}, InvalidAdapterError),
        "alpha-of-400-digits": ("lora_alpha must be a finite number", {"lora_alpha": 10**400}, InvalidAdapterError),
        "field-unknown": ("not supported", {"run_this": "rm -rf /"}, UnsupportedAdapterError),
        "modules-to-save": ("modules_to_save", {"modules_to_save": ["lm_head"]}, UnsupportedAdapterError),
        "pattern-that-runs-for-ever": ("pattern", {"rank_pattern": {"(a+)+$": 4}}, UnsupportedAdapterError),
        "pattern-malformed": ("malformed", {"rank_pattern": {"[z-a]": 4}}, InvalidAdapterError),
        "pattern-of-a-list": ("must map", {"alpha_pattern": ["q"]}, InvalidAdapterError),
        "dora-with-a-bias": ("not supported", {"use_dora": True, "lora_bias": True}, UnsupportedAdapterError),
        "init-that-changes-the-base": ("changes the base", {"init_lora_weights": "pissa"}, UnsupportedAdapterError),
        "base-name-of-a-list": ("must be text", {"base_model_name_or_path": ["x"]}, InvalidAdapterError),
        "base-name-of-escapes": ("control character", {"base_model_name_or_path": "x\x1b]0;"}, InvalidAdapterError),
        "base-name-without-end": ("at most 1024", {"base_model_name_or_path": "x" * 9999}, InvalidAdapterError),
    }
    for title, (message, changed, error) in fields.items():
        CASES.config(title, message, lora_config(**changed), error)
    many = {f"layer{number}": 4 for number in range(1025)}
    CASES.config("too-many-patterns", "at most 1024", lora_config(rank_pattern=many), AdapterTooLargeError)


def _manifests() -> None:
    sound: dict[str, object] = {"name": "x", "kind": "lora"}
    manifests: dict[str, tuple[str, object, type[InvalidAdapterError]]] = {
        "base-of-other-shapes": ("shapes differ", {**sound, "base_fingerprint": "0" * 64}, WrongBaseError),
        "base-of-other-weights": ("weights differ", {**sound, "base_weights_digest": "0" * 64}, WrongBaseError),
        "manifest-of-another-kind": ("says kind prompt", {**sound, "kind": "prompt"}, InvalidAdapterError),
        "manifest-of-another-rank": ("says rank 5", {**sound, "rank": 5}, InvalidAdapterError),
        "manifest-unknown-field": ("unknown fields", {**sound, "exec": "x"}, InvalidAdapterError),
        "manifest-unknown-kind": ("kind of", {**sound, "kind": "pickle"}, InvalidAdapterError),
        "manifest-key-twice": ("appears twice", '{"name": "x", "kind": "lora", "kind": "lora"}', InvalidAdapterError),
        "manifest-cut-off": ("not valid JSON", '{"name"', InvalidAdapterError),
        "manifest-score-of-text": ("finite numbers", {**sound, "scores": {"rouge1": "high"}}, InvalidAdapterError),
        "manifest-scores-without-end": (
            "at most 256",
            {**sound, "scores": {str(number): 1 for number in range(999)}},
            InvalidAdapterError,
        ),
        "manifest-of-escapes": ("control character", {**sound, "description": "\x1b[2Jhello"}, InvalidAdapterError),
        "manifest-turned-round": ("control character", {**sound, "licence": "\u202eTIM"}, InvalidAdapterError),
        "manifest-long-description": ("at most 4096", {**sound, "description": "x" * 5000}, InvalidAdapterError),
        "manifest-rank-negative": ("whole number", {**sound, "rank": -1}, InvalidAdapterError),
    }
    for title, (message, manifest, error) in manifests.items():
        CASES.files(title, error, message, manifest=manifest)
    CASES.files("manifest-not-utf-8", InvalidAdapterError, "not text in UTF-8", manifest=b'{"name": "\xff"}')
    CASES.files("manifest-in-place-of-the-config", InvalidAdapterError, "missing", manifest=sound, **{CONFIG: False})


def _templates() -> None:
    templates = {
        "template-calls": ("nothing else; it has a call", "{{ text.upper() }}"),
        "template-escapes-by-class": ("nothing else", "{{ text.__class__.__mro__[1].__subclasses__() }}"),
        "template-escapes-by-cycler": ("only", "{{ cycler.__init__.__globals__.os.popen('id').read() }}{{ text }}"),
        "template-escapes-by-filter": ("nothing else; it has a filter", "{{ text | attr('__class__') }}"),
        "template-escapes-by-format": ("nothing else", "{{ '{0.__class__}'.format(text) }}"),
        "template-loops-without-end": ("only", "{% for x in range(999999999) %}{{ text }}{% endfor %}"),
        "template-multiplies": ("nothing else; it has a mul", "{{ text * 999999999 }}"),
        "template-to-the-power": ("nothing else", "{{ 9 ** 9 ** 9 ** 9 }}{{ text }}"),
        "template-repeats-the-text": ("at most 4", "{{text}}" * 500),
        "template-recurses": ("does not parse", "{{ text" + ".a" * 2000 + " }}"),
        "template-of-brackets": ("does not parse", "{{ " + "(" * 2000 + "text" + ")" * 2000 + " }}"),
        "template-spells-half-a-surrogate": ("valid Unicode", '{{ "\\ud800" }}{{ text }}'),
        "template-of-4000-digits": ("must be text", "{{ " + "9" * 4000 + " }}{{ text }}"),
        "template-includes-a-file": ("nothing else", "{% include '/etc/passwd' %}{{ text }}"),
        "template-without-the-text": ("must hold", "Summarize."),
        "template-of-another-field": ("only", "{{ secret }}{{ text }}"),
        "template-with-a-null": ("NUL", "\0{{ text }}"),
        "template-malformed": ("does not parse", "{{ text"),
        "template-without-end": ("at most 4096", "{{ text }}" + "x" * 5000),
    }
    for title, (message, template) in templates.items():
        manifest = {"name": "x", "kind": "lora", "prompt_template": template}
        CASES.files(title, PromptTemplateError, message, manifest=manifest)


def _other_files() -> None:
    for name in ("adapter_model.bin", "adapter_model.pt", "TRAINING_ARGS.BIN", "model.ckpt", "x.pkl", "x.npz"):
        CASES.files(f"pickle-{name}", UnsupportedAdapterError, "can run code", **{name: pickle.dumps({"a": 1})})
    for name in ("run.sh", ".env", "conf.py", "adapter_model.safetensors.index.json", "readme.MD"):
        CASES.files(f"file-{name}", InvalidAdapterError, "unexpected file", **{name: b"x"})
    long = "x" * (LIMITS.max_text_bytes + 1)
    CASES.files("card-over-its-limit", AdapterTooLargeError, "card.md", **{"card.md": long})
    CASES.files("card-is-a-pickle", InvalidAdapterError, "not text", **{"card.md": pickle.dumps({"a": 1}, protocol=4)})
    CASES.files("weights-missing", InvalidAdapterError, "is missing", **{"adapter_model.safetensors": False})


_config_json()
_config_fields()
_manifests()
_templates()
_other_files()
