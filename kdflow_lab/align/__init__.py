"""How two tokenizers relate: which of their tokens write the same bytes of a text.

kd.align.align(teacher_tokenizer, student_tokenizer, "naïve café")    # one text, to look at
kd.align.align_conversation(teacher_tokenizer, student_tokenizer)     # both chat templates
pair = kd.align.TokenizerPair.of(teacher_tokenizer, student_tokenizer)
kd.align.align_ids(pair, teacher_ids, student_ids)                    # a batch, to train on
kd.align.examine_pair(teacher_tokenizer, student_tokenizer)           # do they fit at all?
"""

from __future__ import annotations

from kdflow_lab.align.alignment import Alignment, Unaligned
from kdflow_lab.align.batch import AlignedIds, UnalignedToken
from kdflow_lab.align.conversation import align_conversation
from kdflow_lab.align.ids import align_ids
from kdflow_lab.align.report import PairReport, VocabularyMap, examine_pair, shared_mass
from kdflow_lab.align.tables import AlignmentRow, rows
from kdflow_lab.align.texts import align, align_response
from kdflow_lab.align.token_bytes import vocabulary_of
from kdflow_lab.align.vocabulary import TokenizerPair, Vocabulary

__all__ = [
    "AlignedIds",
    "Alignment",
    "AlignmentRow",
    "PairReport",
    "TokenizerPair",
    "Unaligned",
    "UnalignedToken",
    "Vocabulary",
    "VocabularyMap",
    "align",
    "align_conversation",
    "align_ids",
    "align_response",
    "examine_pair",
    "rows",
    "shared_mass",
    "vocabulary_of",
]
