"""Special tokens by what they are for, also those that only a template shows."""

from __future__ import annotations

from typing import Any

import pytest
from small_tokenizers import CHATML, INSTRUCT, tokenizer
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from kdflow_lab.align.roles import CONVERSATION, render, roles_of, turn_markers

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]",
    "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
TURNS = "{{% for m in messages %}}{}{{% endfor %}}"
TEMPLATES = {
    "chatml": (CHATML, {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"}),
    "headers": (
        TURNS.format(
            "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
            "+ '<|eot_id|>' }}"
        ),
        {
            "turn_start": "<|start_header_id|>",
            "header_end": "<|end_header_id|>",
            "turn_end": "<|eot_id|>",
        },
    ),
    "roles": (
        TURNS.format("{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"),
        {"user_start": "<|user|>", "assistant_start": "<|assistant|>", "turn_end": "<|end|>"},
    ),
    "instruct": (
        INSTRUCT,
        {"user_start": "[INST]", "assistant_start": "[/INST]", "turn_end": "</s>"},
    ),
    "begin of text": (
        "{{ bos_token }}"
        + TURNS.format(
            "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}"
        ),
        {"turn_start": "<start_of_turn>", "turn_end": "<end_of_turn>"},
    ),
    "words only": (TURNS.format("{{ m['role'] + ': ' + m['content'] + '\n' }}"), {}),
    "only the user is marked": (
        TURNS.format("{{ ('<|user|>' if m['role'] == 'user' else '') + m['content'] }}"),
        {"user_start": "<|user|>"},
    ),
}


def _tokenizer(template: str | None = None, **special: str) -> Any:
    made = Tokenizer(models.BPE({"a": 0}, []))
    made.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    wrapped.chat_template = template
    return wrapped


@pytest.mark.parametrize("name", TEMPLATES)
def test_turn_markers_are_found_by_where_they_stand(name: str):
    template, expected = TEMPLATES[name]
    made = _tokenizer(template, bos_token="<s>", eos_token="</s>")
    found = {role: made.convert_ids_to_tokens(one) for role, one in turn_markers(made).items()}
    assert found == expected


def test_a_turn_ends_with_eos_where_no_template_says_otherwise():
    made = _tokenizer(None, eos_token="</s>")
    end = made.convert_tokens_to_ids("</s>")
    assert turn_markers(made) == {}
    assert roles_of(made)["turn_end"] == roles_of(made)["eos"] == end


def test_the_templates_end_of_turn_goes_before_eos():
    """What ends an answer in the data is what stops generation, not what ends a document."""
    made = _tokenizer(CHATML, eos_token="</s>")
    roles = roles_of(made)
    assert made.convert_ids_to_tokens(roles["turn_end"]) == "<|im_end|>"
    assert made.convert_ids_to_tokens(roles["eos"]) == "</s>"
    assert list(roles).index("turn_end") < list(roles).index("eos")


def test_special_tokens_without_a_known_role_are_listed_by_their_spelling():
    roles = roles_of(_tokenizer(CHATML, eos_token="</s>"))
    assert {"<|eot_id|>", "[INST]"} <= set(roles)
    assert "<|im_end|>" not in roles


def test_a_template_that_refuses_the_conversation_has_no_markers():
    made = _tokenizer("{{ raise_exception('no') }}")
    assert render(made) is None
    assert turn_markers(made) == {}


def test_the_zoos_template_is_rendered_as_it_is():
    text = render(tokenizer("zoo"))
    assert text is not None
    assert text.startswith(f"<|im_start|>user\n{CONVERSATION[0]['content']}<|im_end|>\n")
