"""The student: an FSDP2 model, its optimizer, its feed of micro-batches, its checkpoints."""
