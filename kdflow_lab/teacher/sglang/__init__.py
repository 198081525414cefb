"""The SGLang teacher: an inference engine whose hidden states never leave its scheduler process.

    engine "teacher"         dedicated process            SGLang's scheduler
    backend.py          ──►  host.py: Engine         ──►  hooks.py, a forward hook
       │ slots' numbers         │ token ids from the         │ writes the wanted rows
       │                        ▼ slot, as requests          ▼ into the slot, once
       └──────────────────────  ring (memfd, mapped by all three)  ───────────────────► student

Only numbers travel between these processes (`wire.py`). `versions.py` says what is installed,
`arguments.py` what SGLang is told, `process.py` starts and watches the dedicated process,
`canary.py` compares the transferred rows with SGLang's own log-probabilities.
"""
