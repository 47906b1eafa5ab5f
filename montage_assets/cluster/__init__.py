"""Where steps run. Never imports `media`."""
