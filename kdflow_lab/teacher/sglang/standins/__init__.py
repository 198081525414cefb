"""Stand-ins for packages that SGLang imports everywhere and runs on a GPU only.

Each lies in a folder of its own, which `process.py` puts on the path of SGLang's processes: only on
a CPU, only where the real package is missing. They are importable, and say so on any use.
"""
