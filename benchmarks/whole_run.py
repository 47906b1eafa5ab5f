"""`montage make` as it is, but with every step in the run's own process however many shards there are.

MONTAGE_WORKERS sets both the shards and the step processes; the cost of orchestration is to be seen with four
shards and no process but one.
"""

from unittest.mock import patch

from montage_assets import local_run
from montage_assets.cli import main

if __name__ == "__main__":
    with patch.object(local_run, "processes_for", lambda *_: 1):
        main()
