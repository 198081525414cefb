"""The data plane: hidden states go from teacher to student through shared memory, written once.

`layout` says where the bytes of a slot lie, `ring` maps the slots, `messages` is what goes over the
socket, `student_end` asks and reads, `teacher_end` answers in the data plan's order.
"""
