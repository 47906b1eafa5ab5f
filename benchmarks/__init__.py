"""What this program costs and how right it is, beside its peers; `python -m benchmarks` writes docs/benchmarks.md.

One module per question; each has a `measure(bench)` that returns its section of the document.
"""
