"""On-policy distillation: the student writes, the teacher marks every token, the student learns."""
