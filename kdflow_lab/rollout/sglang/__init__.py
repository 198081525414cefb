"""The SGLang rollout backend: continuous batching in processes of its own.

    engine "rollout"          dedicated process           SGLang's scheduler
    backend.py           ──►  host.py: Engine        ──►  loader.py, a custom weight loader
       │ prompts, versions       │ token ids                 │ copies the student's weights
       ▼                         ▼                           ▼ from the segment, once
       weight segment (memfd) ───────────────────────────────┘

What it shares with the SGLang teacher is imported from there: starting, watching and ending the
process (`process.py`, `host.Guard`), its arguments, and the messages (`wire.py`).
"""
