"""The command line: one group, whose commands are imported when they are called."""

from vtrain import searchpath

searchpath.leave_current_directory()  # before anything is imported that could lie there

import importlib
import signal
import sys
import traceback
import warnings
from types import FrameType
from typing import NoReturn

import click

from vtrain.children import safe_environment
from vtrain.console import print_json, printable
from vtrain.errors import StorageError, UnsupportedError, VtrainError

# command -> (module, attribute, help): listing them imports none.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "audit": ("auditor.audit.cli", "audit", "Replay a run and give a verdict."),
    "calibrate": (
        "trainer.cli",
        "calibrate",
        "Say what each policy costs for a job on this machine; measure adaptive thresholds.",
    ),
    "demo": ("vtrain.demo.cli", "demo", "Train, audit, tamper and audit again, in a few minutes."),
    "dispute": ("auditor.dispute.cli", "dispute", "Narrow a difference down to one operation, and judge it."),
    "doctor": ("vtrain.doctor", "doctor", "Say what this machine is and whether it keeps the contract."),
    "inspect": ("auditor.evidence.cli", "inspect", "Show what a run logged, per operation."),
    "keygen": ("trainer.cli", "keygen", "Make an Ed25519 key."),
    "prove": ("auditor.evidence.cli", "prove", "Prove that a step is in a run, or check such a proof; needs no torch."),
    "referee": ("auditor.dispute.cli", "referee", "Judge one disputed operation from its record; needs no torch."),
    "report": ("auditor.report.cli", "report", "Write an offline HTML page about a run and a verdict; needs no torch."),
    "resume": ("trainer.cli", "resume", "Go on with an interrupted run."),
    "train": ("trainer.cli", "train", "Train a job and record the run."),
    "verify": ("auditor.evidence.cli", "verify", "Check signatures, proofs and formats of a run; needs no torch."),
}
INTERRUPTED = 130
INTERNAL = 70  # sysexits.h: EX_SOFTWARE


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in sorted(COMMANDS)])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 verified or done, 1 refuted, 2 usage error, 3 malformed run or failing disk, "
    "4 unsupported here, 70 a defect of vtrain, 130 interrupted.",
)
@click.version_option(package_name="vtrain")
def group() -> None:
    """Verifiable training: train on one kind of hardware, audit on another, equal in every bit.

    \b
    Examples:
      vtrain train job.toml --out runs/mine
      vtrain audit runs/mine --profile baseline
    """


def main() -> NoReturn:
    """Run the command line; turns errors into their exit codes."""
    signal.signal(signal.SIGTERM, _terminated)
    warnings.showwarning = _show_warning
    try:
        with safe_environment():
            code = group.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except VtrainError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        _fail(error.format_message(), error.exit_code, told=True)
    except (click.Abort, KeyboardInterrupt):
        text = "interrupted; a run that was being trained goes on with `vtrain resume RUN`"
        click.echo(text, err=True)
        _fail(text, INTERRUPTED, told=True)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(INTERRUPTED)
    except OSError as error:  # of a file that a command reads or writes for the user
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", StorageError.exit_code)
    except MemoryError:
        _fail("this machine's memory is not enough", UnsupportedError.exit_code)
    except Exception as error:  # a defect of ours: never to be mistaken for a verdict
        traceback.print_exc()
        _fail(f"a defect of vtrain; please report it with the lines above: {type(error).__name__}: {error}", INTERNAL)


def _fail(text: str, code: int, told: bool = False) -> NoReturn:
    """Say an error, also as JSON on stdout where that was asked for, and end with its exit code."""
    if not told:
        click.echo(f"error: {printable(text)}", err=True)
    if "--json" in sys.argv[1:]:
        print_json({"error": text, "exitCode": code})
    sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A line as an error has one; Python's own form shows a line of ours."""
    click.echo(f"warning: {printable(str(message))}", err=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
