"""The tokenizer fields: forms that mergekit takes pass unchanged, others are refused at their place."""

import pytest

from cuvee.errors import RecipeError
from cuvee.recipe.load import load_recipe

HEAD = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"


def test_all_forms_of_the_compatibility_page():
    text = (
        HEAD
        + """
tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: a, force: true}
    <|im_end|>:
      source: {kind: model_token, model: a, token: "</s>"}
    <pad>: {source: {kind: model_token, model: {path: a}, token_id: 2}}
    <new>: {source: {kind: zero}}
    <other>: {source: {model: {path: a}}}
    <plain>:
  pad_to_multiple_of: 64
chat_template: chatml
"""
    )
    recipe, warnings = load_recipe(text)
    assert warnings == ()
    assert recipe.tokenizer["source"] == "union"
    assert recipe.tokenizer["tokens"]["<|im_end|>"]["source"]["token"] == "</s>"
    assert recipe.tokenizer["pad_to_multiple_of"] == 64
    assert (recipe.chat_template, recipe.tokenizer_source) == ("chatml", None)


@pytest.mark.parametrize(
    ("written", "expected"), [("union", "union"), ("null", None), ("{path: x, revision: y}", "x@y")]
)
def test_tokenizer_source(written, expected):
    assert load_recipe(HEAD + f"tokenizer_source: {written}\n")[0].tokenizer_source == expected


@pytest.mark.parametrize(
    ("lines", "path", "words"),
    [
        ("tokenizer: union", "tokenizer", ["tokenizer: {source: union}"]),
        (
            "tokenizer: {source: union}\ntokenizer_source: base",
            "tokenizer_source",
            ["both tokenizer and tokenizer_source"],
        ),
        ("tokenizer: {pad_to_multiple_of: 0}", "tokenizer.pad_to_multiple_of", ["at least 1"]),
        ("tokenizer: {pad_to_multiple_of: true}", "tokenizer.pad_to_multiple_of", ["whole number"]),
        ("tokenizer: {tokens: [a]}", "tokenizer.tokens", ["mapping"]),
        ("tokenizer: {tokens: {5: {source: a}}}", "tokenizer.tokens[5]", ["text", "quote"]),
        ("tokenizer: {tokens: {x: a}}", "tokenizer.tokens.x", ["{source: MODEL}"]),
        ("tokenizer: {tokens: {x: {force: 3}}}", "tokenizer.tokens.x.force", ["true or false"]),
        ("tokenizer: {tokens: {x: {source: {kind: one}}}}", "tokenizer.tokens.x.source.kind", ["model_token or zero"]),
        ("tokenizer: {tokens: {x: {source: {kind: model_token}}}}", "tokenizer.tokens.x.source", ["names no model"]),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}",
            "tokenizer.tokens.x.source",
            ["exactly one"],
        ),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}",
            "tokenizer.tokens.x.source.token_id",
            ["from 0"],
        ),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: 7}}}}",
            "tokenizer.tokens.x.source.token",
            ["text", "token_id"],
        ),
        ("tokenizer_source: 5", "tokenizer_source", ["text"]),
        ("chat_template: [a]", "chat_template", ["text"]),
    ],
)
def test_refusals(lines, path, words):
    with pytest.raises(RecipeError) as refusal:
        load_recipe(HEAD + lines + "\n")
    error = refusal.value
    assert (error.path, error.line) == (path, 3 + lines.count("\n"))
    assert all(word in str(error) for word in words), str(error)


def test_unknown_keys_are_warned_about():
    _, warnings = load_recipe(HEAD + "tokenizer: {sauce: union, tokens: {x: {forced: true}}}\n")
    assert warnings == (
        "recipe:3 (tokenizer.sauce): unknown key 'sauce'; did you mean source?",
        "recipe:3 (tokenizer.tokens.x.forced): unknown key 'forced'; did you mean force?",
    )
