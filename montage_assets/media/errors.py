"""The errors of the media core.

Every message is one line that a user can act on: what happened, to which file, what to do next.
"""


class MediaError(Exception):
    """A file or a setting cannot be used. The message is one clear line, meant for the user."""


class UnusableClip(MediaError):  # noqa: N818 -- it names the clip's state, and reads so where it is raised
    """A clip that is left out of the montage; the message is the reason shown to the user."""


class ClipChanged(UnusableClip):
    """A clip that is another one than when the run began: what was made of it would be kept under the wrong name."""


class FfmpegFailed(MediaError):  # noqa: N818
    """An ffmpeg process ended with an error; the message holds its last line, `log` all of them.

    `from_outside` says that not its input was at fault: it was killed, or the disk was full. `hung` says that it
    was stopped because nothing more came.
    """

    def __init__(self, message: str, log: str = "", *, from_outside: bool = False, hung: bool = False) -> None:
        super().__init__(message)
        self.log = log
        self.from_outside = from_outside
        self.hung = hung
