"""The media core: pure Python over ffmpeg, PyAV, PySceneDetect and NumPy.

Nothing in here imports dagster; every function works from a notebook.
"""
