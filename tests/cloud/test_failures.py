"""Every class of failure has its line, and is told by what cgpu prints.

What the tests' own `cgpu` prints is told in whole runs; here are the other forms.
"""

from __future__ import annotations

import pytest

from montage_assets.cloud.failures import CloudFailure, CloudFault, fault_of, one_line

AUTHENTICATED = "Authenticated as Someone <someone@example.org>\n"


@pytest.mark.parametrize("fault", CloudFault)
def test_every_class_has_one_line_for_the_user(fault: CloudFault) -> None:
    assert fault.line
    assert "\n" not in fault.line
    assert not (fault.lasting and fault.passing)


@pytest.mark.parametrize(
    ("out", "err", "fault"),
    [
        ("\x1b[32m" + AUTHENTICATED.strip() + "\x1b[39m\n", "", CloudFault.NO_CAPACITY),
        ("", "", CloudFault.CRASHED),
        (
            AUTHENTICATED,
            "Colab is temporarily out of GPU capacity for this account (tried: T4).",
            CloudFault.NO_CAPACITY,
        ),
        (AUTHENTICATED, "Failed request POST https://x/assign: Too Many Requests", CloudFault.QUOTA),
        (AUTHENTICATED, "Failed request POST https://x: Precondition Failed", CloudFault.TOO_MANY_RUNTIMES),
        (
            AUTHENTICATED,
            "Failed request GET https://x: Bad Gateway\nResponse body: <p>Check your network.</p>\n</html>",
            CloudFault.NO_CAPACITY,
        ),
        (AUTHENTICATED, "read ECONNRESET", CloudFault.CONNECTION_LOST),
        (AUTHENTICATED, "Upload failed (413 Payload Too Large)", CloudFault.UPLOAD_FAILED),
        ("", "connect ETIMEDOUT 142.250.1.1:443", CloudFault.OFFLINE),
    ],
)
def test_what_else_cgpu_prints_tells_the_class(out: str, err: str, fault: CloudFault) -> None:
    assert fault_of(1, out, err) is fault


def test_no_secret_and_no_colour_gets_into_a_line() -> None:
    said = "\x1b[31mFailed: refresh_token=1//abcdefgh and Bearer ya29.secretsecret at https://x/y?token=abc\x1b[39m\n\n"
    line = one_line(said)
    assert "abcdefgh" not in line
    assert "ya29" not in line
    assert "token=abc" not in line
    assert "\x1b" not in line


def test_a_line_without_a_word_says_nothing() -> None:
    assert one_line('[\n  {\n    "message": "Required"\n  }\n]\n') == '"message": "Required"'


def test_a_long_complaint_is_cut() -> None:
    assert len(str(CloudFailure(CloudFault.CRASHED, "x" * 5000))) < 250
