"""What a run will take, before anything starts: memory, time and disk, from sizes alone.

`make_plan` reads configs, the headers of safetensors files and the data's lengths; `compare` holds
a plan against what a run has measured, and lets the next plan learn from it.
"""
