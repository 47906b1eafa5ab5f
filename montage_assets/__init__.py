"""A folder of raw clips and a song become a beat-synced montage, as Dagster assets."""
