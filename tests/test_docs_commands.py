"""The commands and names in README and docs: shells read them alike, every setting composes, every name exists."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from small_runs import composed

from edge_grpo.command_line.check import check_config
from edge_grpo.command_line.compose import PLUGINS, _values, parse
from edge_grpo.command_line.run import PATHS, RESUME_OPTIONS, config_dir, expanded_home, quoted_path
from edge_grpo.errors import UserError
from edge_grpo.loggers.metrics import METRICS
from edge_grpo.programs.config_page import PROGRAMS, families, groups, own_settings
from edge_grpo.programs.metrics_page import of_strategies

REPO = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(REPO)): path.read_text()
    for path in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md")))
}
COMMANDS = (*PROGRAMS, "sft")
GROUPS = {*groups(), "hydra/launcher", "hydra/sweeper"}
UNCHECKED = {"--config-dir", "--help", "-sc"}
"""flags of commands that run nothing, or that need files of the reader's"""
SHELLS = [name for name in ("bash", "zsh") if shutil.which(name)]
STAND_IN = """edge-grpo-{0}() {{ printf '%s\\037' {0} "$@" >> calls; printf '\\036' >> calls; }}\n"""
METRIC = re.compile(r"(?:train|collapse|correction|perf|timing_s|verifier|mismatch|allocation|eval|sft)/[\w/*<>@]+")
SETTING = re.compile(r"[+~]{0,2}([a-z_]+(?:[./@][a-z_\d./@]+)*)=")


def blocks(text: str) -> str:
    """The commands of a page, placeholders in angle brackets replaced by a word."""
    return re.sub(r"<[\w ]+>", "PLACE", "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))


def calls(shell: str, text: str, folder: Path) -> list[list[str]]:
    """What the shell makes of the commands: those of the project with their arguments; no other one is found."""
    folder.mkdir()
    (folder / "multirun" / "arms" / "a").mkdir(parents=True)  # that a loop goes over
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
    typed = {}
    for page, text in PAGES.items():
        typed |= {tuple(call): page for call in calls("bash", blocks(text), tmp_path / page.replace("/", "-"))}
    monkeypatch.chdir(tmp_path)
    wrong = []
    for (program, *arguments), page in typed.items():
        if UNCHECKED & set(arguments):
            continue
        settings = [as_run(a) for a in arguments if not a.startswith("-") and a not in ("...", "job")]
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


def settings() -> dict[str, str]:
    """Every setting that some option has, dotted, and every part of the config above one, with its type."""
    found = {
        f"{group.replace('/', '.')}.{s.key}": s.kind for group in groups() for f in families(group) for s in f.settings
    }
    found |= {s.key: s.kind for program in PROGRAMS for s in own_settings(program)} | dict.fromkeys(GROUPS, "")
    return {".".join(key.split(".")[:n]): "" for key in found for n in range(1, key.count(".") + 1)} | found


def spans(text: str) -> Iterator[str]:
    """The words of the code between single backticks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return chain.from_iterable(span.split() for span in re.findall(r"`([^`]+)`", prose))


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_metrics_that_a_page_names_exist(page: str) -> None:
    known, metrics = settings(), {**METRICS, **{n: m for of in of_strategies().values() for n, m in of.items()}}
    wrong = []
    for word in spans(PAGES[page]):
        key = SETTING.match(word.strip("'\""))
        if key and key[1].split(".")[0] in known and not exists(key[1].partition("@")[0], known):
            wrong.append(word)
        if key and key[1] in GROUPS and not options_exist(key[1], word.strip("'\"").partition("=")[2]):
            wrong.append(word)
        pattern = re.sub(r"<.*?>", "*", word)
        if METRIC.fullmatch(word) and not any(fnmatchcase(pattern, n) or fnmatchcase(n, pattern) for n in metrics):
            wrong.append(word)
    assert not wrong


def exists(key: str, known: Mapping[str, str]) -> bool:
    """A setting, a key of one that is a mapping, one that an option adds elsewhere, or CONTRIBUTING.md's example's."""
    of_mapping = known.get(key.rpartition(".")[0], "").startswith("mapping")
    return key in known or of_mapping or key in ("paths.evaluation_suite", "advantage.power")


def options_exist(group: str, value: str) -> bool:
    """Whether the options that are named are files of the group; of the reader's own (`mine`, DIR) nothing is known."""
    named = [name for name in re.findall(r"[\w.]+", value) if re.fullmatch(r"[a-z\d_.]+", name)]
    ours = {path.stem for path in (config_dir() / group).glob("*.yaml")} | {"null", "mine", "length_baseline"}
    return group == "resume" or group.startswith("hydra") or set(named) <= ours
