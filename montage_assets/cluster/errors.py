"""The error of the cluster rooms."""


class ClusterError(Exception):
    """The cluster cannot be described or used as asked. The message is one clear line, meant for the user."""
