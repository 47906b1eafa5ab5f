"""The assets, one file each, in the order of the flow: footage, proxies, scene_shards, beats,
clip_selections, rendered_segments, montage.

They are thin: they plan, call `media`, and report what a person wants to see.
"""
