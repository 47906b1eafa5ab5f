"""Calls of cgpu: what comes out of them, and that none of them waits, logs in or hides its end."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from montage_assets.cloud.client import CGPUClient, parse_output, remote_line, run_cgpu_command
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import run_cgpu_python
from tests.cloud.conftest import Cloud

HOSTILE = ["it's", 'a "b"', "$(touch /tmp/x)", "-c", "--config", "a;b", "*", "!!", "\\", "ä"]


def fault_of(client: CGPUClient, *argv: str, timeout_s: float = 30.0) -> CloudFault:
    with pytest.raises(CloudFailure) as failure:
        client.run(argv, timeout_s=timeout_s)
    return failure.value.fault


def test_arguments_arrive_as_they_were_given(cloud: Cloud) -> None:
    output = cloud.client().run(["python3", "-c", "import sys; print(ascii(sys.argv[1:]))", *HOSTILE], timeout_s=30)
    assert output.lines == [ascii(HOSTILE)]


def test_the_exit_code_is_the_commands_own(cloud: Cloud) -> None:
    assert cloud.client().run(["sh", "-c", "exit 3"], timeout_s=30).code == 3
    assert cloud.client().run(["true"], timeout_s=30).code == 0


def test_both_outputs_are_read_without_what_cgpu_and_the_terminal_say(cloud: Cloud) -> None:
    output = cloud.client().run(["sh", "-c", "echo one; echo two >&2; printf three"], timeout_s=30)
    assert output.lines == ["one", "two", "three"]


def test_a_command_that_reads_its_input_does_not_eat_the_terminals(cloud: Cloud) -> None:
    assert cloud.client().run(["cat"], timeout_s=30).code == 0


def test_a_command_that_prints_like_a_login_is_no_login(cloud: Cloud) -> None:
    output = cloud.client().run(["echo", "Starting OAuth login"], timeout_s=30)
    assert output.lines == ["Starting OAuth login"]


def test_an_echo_of_the_typed_line_is_not_its_end() -> None:
    line = remote_line(["true"], "abcd")
    assert parse_output(f"/# {line}\nMONTAGE:BEGIN:abcd\nhello\n/# {line}\n", "abcd") is None
    assert parse_output("MONTAGE:BEGIN:abcd\nhello\nMONTAGE:END-abcd:7\n", "abcd") == (7, ["hello"])
    assert parse_output("MONTAGE:BEGIN:other\nMONTAGE:END-other:0\n", "abcd") is None


def test_what_a_terminal_would_act_on_is_never_typed() -> None:
    for bad in ("a\nb", "a\tb", "\x03", "x" * 4000):
        with pytest.raises(ValueError, match="characters"):
            remote_line(["echo", bad], "abcd")


def test_a_command_of_ones_own_returns_what_it_printed(cloud: Cloud) -> None:
    assert run_cgpu_command(["echo", "hello"]) == "hello"
    with pytest.raises(CloudFailure) as failure:
        run_cgpu_command(["sh", "-c", "echo why; exit 1"])
    assert (failure.value.fault, failure.value.detail) == (CloudFault.WORK_FAILED, "why")


def test_a_script_of_ones_own_runs_with_its_arguments(cloud: Cloud) -> None:
    script = cloud.folder / "add.py"
    script.write_text("import sys\nprint(sum(map(int, sys.argv[1:])))\n")
    assert run_cgpu_python(script, "1", "2").lines == ["3"]
    script.write_text("import sys\nsys.exit('MONTAGE-FAULT TOOL_MISSING ffmpeg')\n")
    with pytest.raises(CloudFailure) as failure:
        run_cgpu_python(script)
    assert (failure.value.fault, failure.value.detail) == (CloudFault.TOOL_MISSING, "ffmpeg")


def test_without_a_login_cgpu_is_not_even_called(cloud: Cloud) -> None:
    cloud.session.unlink()
    assert fault_of(cloud.client(), "true") is CloudFault.NO_SESSION
    assert cloud.calls() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"id": "1", "refreshToken": ""}', "\xff"])
def test_a_damaged_login_is_none(cloud: Cloud, text: str) -> None:
    cloud.session.write_bytes(text.encode("latin-1"))
    assert fault_of(cloud.client(), "true") is CloudFault.NO_SESSION
    assert cloud.calls() == []


def test_without_cgpu_the_cloud_is_not_there(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cloud.folder))
    assert fault_of(cloud.client(), "true") is CloudFault.NOT_INSTALLED


def test_a_login_that_begins_ends_the_call_at_once(cloud: Cloud) -> None:
    cloud.behave("no-session")
    # The program would wait for ten minutes, and the call for longer.
    assert fault_of(cloud.client(), "true", timeout_s=900) is CloudFault.NO_SESSION


def test_no_browser_can_be_opened_from_a_call(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("BROWSER", "firefox")
    program = cloud.folder / "path" / "cgpu"
    program.write_text(f'#!/bin/sh\nenv > "{cloud.folder}/seen"\npwd >> "{cloud.folder}/seen"\nexit 1\n')
    fault_of(cloud.client(), "true")
    seen = (cloud.folder / "seen").read_text().splitlines()
    assert "BROWSER=false" in seen
    assert not [line for line in seen if line.startswith("DISPLAY=")]
    assert Path(seen[-1]) != Path.cwd(), "a configuration in the folder of the footage is not read"


def test_what_the_program_started_is_gone_when_it_is_given_up(cloud: Cloud) -> None:
    pid_file = cloud.folder / "pid"
    program = cloud.folder / "path" / "cgpu"
    program.write_text(f"#!/bin/sh\nsh -c 'echo $$ > \"{pid_file}\"; sleep 300; :' &\nwait\n")
    assert fault_of(cloud.client(deadline_s=2.0), "true") is CloudFault.TIMED_OUT
    command = Path("/proc", pid_file.read_text().strip(), "cmdline")
    for _ in range(100):
        if not command.exists() or not command.read_bytes():  # gone, or dead and not yet fetched by init
            return
        time.sleep(0.05)
    raise AssertionError("a child is left")


def test_all_calls_together_keep_to_the_deadline(cloud: Cloud) -> None:
    client = cloud.client(deadline_s=0.0)
    assert fault_of(client, "true") is CloudFault.TIMED_OUT
    assert cloud.calls() == []


def test_a_call_waits_for_that_of_another_process_but_not_for_ever(cloud: Cloud) -> None:
    with (cloud.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fault_of(cloud.client(lock_wait_s=0.3), "true") is CloudFault.BUSY
    assert cloud.client(lock_wait_s=0.3).run(["true"], timeout_s=30).code == 0


def test_calls_of_many_processes_come_one_after_the_other(cloud: Cloud) -> None:
    code = (
        "import sys; from pathlib import Path; from montage_assets.cloud.client import CGPUClient;"
        "f = Path(sys.argv[1]);"
        "c = CGPUClient(consent=True, config=f / 'config', lock=f / 'lock');"
        "print(c.run(['sh', '-c', 'mkdir busy && sleep 0.2 && rmdir busy'], timeout_s=60).code)"
    )
    command = [sys.executable, "-c", code, str(cloud.folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["0", "0", "0"]


def test_a_cgpu_that_ends_well_without_the_works_end_is_not_believed(cloud: Cloud) -> None:
    cloud.behave("no-end-line")
    assert fault_of(cloud.client(), "true") is CloudFault.OUTPUT_UNREADABLE


def test_the_account_is_asked_for_its_gpus(cloud: Cloud) -> None:
    assert cloud.client().ask_status() == "Eligible GPUs: T4, L4"
