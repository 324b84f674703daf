"""The commands in README and docs: bash and zsh read them alike, and every one of them composes."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from small_runs import composed

from edge_grpo.command_line.check import check_config
from edge_grpo.command_line.compose import PLUGINS, _values, parse
from edge_grpo.command_line.run import RESUME_OPTIONS
from edge_grpo.command_line.shell_words import PATHS, expanded_home, quoted_path
from edge_grpo.errors import UserError
from edge_grpo.programs.browse import parser
from edge_grpo.programs.config_page import PROGRAMS, groups

REPO = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(REPO)): path.read_text()
    for path in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md")))
}
COMMANDS = (*PROGRAMS, "sft", "browse")
GROUPS = {*groups(), "hydra/launcher", "hydra/sweeper"}
UNCHECKED = {"--config-dir", "--help", "-sc"}
"""flags of commands that run nothing, or that need files of the reader's"""
SHELLS = [name for name in ("bash", "zsh") if shutil.which(name)]
STAND_IN = """edge-grpo-{0}() {{ printf '%s\\037' {0} "$@" >> calls; printf '\\036' >> calls; }}\n"""


def blocks(text: str) -> str:
    """The commands of a page, placeholders in angle brackets replaced by a word."""
    return re.sub(r"<[\w ]+>", "PLACE", "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))


def calls(shell: str, text: str, folder: Path) -> list[list[str]]:
    """What the shell makes of the commands: those of the project with their arguments; no other one is found."""
    folder.mkdir()
    for runs in re.findall(r"for run in (\S+)/\*/", text):
        (folder / runs / "a").mkdir(parents=True, exist_ok=True)  # that the loop goes over
    (folder / "script").write_text("".join(map(STAND_IN.format, COMMANDS)) + "PATH=/nowhere\n" + text)
    subprocess.run([shutil.which(shell) or shell, "script"], cwd=folder, capture_output=True, timeout=20)
    written = folder / "calls"
    return [call.split("\x1f")[:-1] for call in written.read_text().split("\x1e")[:-1]] if written.exists() else []


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "edge-grpo-" in blocks(text)])
@pytest.mark.parametrize("shell", SHELLS)
def test_shells_read_the_commands_of_a_page_alike(page: str, shell: str, tmp_path: Path) -> None:
    text = blocks(PAGES[page])
    subprocess.run([shell, "-n"], input=text, text=True, check=True)
    read = calls(shell, text, tmp_path / shell)
    assert read == calls("bash", text, tmp_path / "again")
    assert len(read) == len(re.findall(r"(?:^|[;&(] *|do |^[A-Z_]+=\S+ )edge-grpo-", text, re.MULTILINE))


def variants(texts: list[str]) -> Iterator[list[str]]:
    """The settings with the first value of every sweep, then with the next, as often as the longest has values."""
    options = [_values(override) for override in parse(texts)]
    for k in range(max(map(len, options), default=0)):
        yield [values[min(k, len(values) - 1)] for values in options]


def test_every_command_of_the_pages_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: dict[tuple[str, ...], str] = {}
    for page, text in PAGES.items():
        typed |= {tuple(call): page for call in calls("bash", blocks(text), tmp_path / page.replace("/", "-"))}
    monkeypatch.chdir(tmp_path)
    wrong = []
    for (program, *arguments), page in typed.items():
        if UNCHECKED & set(arguments):
            continue
        if program == "browse":
            parser().parse_args(arguments)
            continue
        typed_settings = [a for a in arguments if not a.startswith(("-", "hydra.sweep.dir=", "hydra.run.dir="))]
        settings = [as_run(a) for a in typed_settings if a not in ("...", "job")]
        try:
            for variant in variants(settings):
                job, _ = composed(program, *variant)
                if not OmegaConf.missing_keys(job):
                    check_config(job, getattr(import_module(f"edge_grpo.programs.{program}"), "INJECTED", {}))
        except (UserError, HydraException, OmegaConfBaseException) as error:
            if not any(plugin in str(error) for plugin in PLUGINS):
                wrong.append(f"{page}: edge-grpo-{program} {' '.join(arguments)}: {error}")
    assert not wrong, "\n".join(wrong)
    assert len(typed) > 60


def as_run(text: str) -> str:
    """A setting as the command line takes it: paths quoted, `resume=DIR` spelt out."""
    key, _, value = text.partition("=")
    if key == "resume" and value not in RESUME_OPTIONS:
        return f"resume.directory={value}"
    if key.rpartition(".")[2] in PATHS and "=" in value:
        Path(value).mkdir(parents=True, exist_ok=True)
    return quoted_path(expanded_home(text))
