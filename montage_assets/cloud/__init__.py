"""A cloud GPU through the `cgpu` command line: what may be sent there, how, and what happens when it fails.

Never imports dagster. Nothing here runs without consent (`policy`, `offload`).
"""
