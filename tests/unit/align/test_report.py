"""What is said of two tokenizers before they are trained across."""

from __future__ import annotations

from small_tokenizers import tokenizer

from kdflow_lab.align import PairReport, examine_pair
from kdflow_lab.align.report import PairFinding


def _find(report: PairReport, name: str) -> PairFinding:
    return next(one for one in report.findings if one.name == name)


def test_one_tokenizer():
    report = examine_pair(tokenizer("zoo"), tokenizer("zoo"))
    assert report.verdict == "one tokenizer"
    assert (report.coverage, report.one_to_one) == (1.0, 1.0)
    assert report.fits
    assert report.templates[0] == report.templates[1]


def test_two_tokenizers_of_equal_size_are_told_apart():
    report = examine_pair(tokenizer("metaspace"), tokenizer("llama"))
    assert report.verdict == "cross-tokenizer"
    assert "rows are paired by the bytes" in report.why
    assert _find(report, "ids").teacher == _find(report, "ids").student == "1,100"
    assert "equal size is not equal tokenizer" in _find(report, "ids").advice


def test_what_ends_an_answer_and_what_pads():
    report = examine_pair(tokenizer("byte_large"), tokenizer("metaspace"))
    end = _find(report, "end of answer")
    assert end.teacher == "<|im_end|> (eos <|endoftext|>)"
    assert end.student == "</s> (eos </s>)"
    assert not end.fits and "generation must stop at both" in end.advice
    padding = _find(report, "padding")
    assert (padding.teacher, padding.student) == ("<|endoftext|>", "none")
    assert not padding.fits


def test_what_encode_adds_and_whether_the_template_adds_it_again():
    report = examine_pair(tokenizer("zoo"), tokenizer("metaspace"))
    opening = _find(report, "encode() adds")
    assert (opening.teacher, opening.student) == ("nothing", "<s>, and so does the template")
    assert opening.advice


def test_both_templates_are_shown():
    report = examine_pair(tokenizer("byte_large"), tokenizer("metaspace"))
    assert report.templates[0] is not None and "<|im_start|>user" in report.templates[0]
    assert report.templates[1] is not None and report.templates[1].startswith("<s>[INST] ")
    assert _find(report, "chat template").fits
    missing = examine_pair(tokenizer("byte_large"), tokenizer("llama"))
    assert not _find(missing, "chat template").fits
    text = repr(missing)
    assert "the student's template: none" in text
    assert "give rows with prompt and completion" in text


def test_a_student_that_changes_texts_is_said_to_lose_bytes():
    report = examine_pair(tokenizer("byte_large"), tokenizer("word_piece"))
    kind = _find(report, "bytes")
    assert kind.student == "blanks are guessed, changes texts"
    assert not kind.fits and "cannot be aligned" in kind.advice
    assert report.coverage < 1
    assert report.vocabulary.shared > 100
