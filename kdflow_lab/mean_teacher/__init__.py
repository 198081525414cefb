"""A teacher that follows the student: self-distillation with `teacher_update_every`.

`average.py` keeps the teacher's weights on the students, in float32 and sharded as theirs; `one.py`
says whether two models are one; `link.py` is rank 0's connection to the teacher's engine; and
`follow.py` brings them together: it moves the average, hands it over, and renews the head.
"""
