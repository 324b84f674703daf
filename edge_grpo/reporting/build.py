"""The report as a whole: read the runs, aggregate them, write tables, figures and the page."""

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from edge_grpo.errors import UserError
from edge_grpo.reporting.arms import label_arms, newest_of_each_seed
from edge_grpo.reporting.cure_tables import matrix_table, revival_table
from edge_grpo.reporting.figures import Canvas, draw_all
from edge_grpo.reporting.folder import drop_report
from edge_grpo.reporting.headline import headline
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.numbers import Arms, Numbers, numbers_of
from edge_grpo.reporting.page import write_page
from edge_grpo.reporting.runs import Run, read_folder
from edge_grpo.reporting.scores import Member, chosen, lookup
from edge_grpo.reporting.stages import families, options_of_arms
from edge_grpo.reporting.table_files import write_table
from edge_grpo.reporting.tables import shortened, tables_of
from edge_grpo.reporting.wandb_runs import PREFIX, read_project
from edge_grpo.statistics.bootstrap import Bootstrap
from edge_grpo.statistics.palette import looks_of

log = logging.getLogger(__name__)


def write_report(
    runs: str | list[str],
    arms: list[str] | None,
    baseline: str | None,
    evaluation_name: str | None,
    bootstrap: Bootstrap,
    layout: Layout,
    title: str,
    out: str,
) -> float | None:
    """Write tables, figures and index.html.

    Args:
        runs: folders above training runs, or W&B projects as `wandb:entity/project`.
        arms: names that there should be, a run's `name` each, in the order of the tables; one of which there is no run
            is told of. null for the order in which the runs are found.
        baseline: label of the arm that the others are compared with, or a setting or value that its label alone has;
            null for the first.
        evaluation_name: of the evaluations that the tables show; null for each run's last one.
        bootstrap: of the intervals over seeds.
        layout: of LaTeX tables and figures, and the names of arms and columns.
        title: of the page.
        out: folder that is written to.

    Returns:
        The highest mean in the first column of scores (in [0, 1]); None if no run has finished.

    Raises:
        UserError: no runs there, no such arm, column or evaluation, or a value out of range.
    """
    found = _in_order(read_runs(runs), arms or ())
    missing = missing_arms(found, arms or ())
    own = label_arms(found)
    labels = [layout.label(label) for label in own]
    positions, told = newest_of_each_seed(found, labels)
    members = [Member(labels[i], found[i], chosen(found[i], evaluation_name)) for i in positions]
    _check_evaluation(evaluation_name, members)
    compared = _arms(members, None if baseline is None else layout.label(baseline))
    numbers = numbers_of(members, compared, bootstrap)
    confidence = bootstrap.confidence
    options = options_of_arms(members)
    of_cures = (
        revival_table(members, compared, bootstrap),
        matrix_table(numbers, options, compared, confidence),
    )
    tables = [*tables_of(numbers, compared, confidence), *(table for table in of_cures if table is not None)]
    layout.check(own, {table.name: table.columns for table in tables})
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drop_report(folder)
    for table in tables:
        write_table(table, layout, folder)
    looks = {layout.label(label): look for label, look in looks_of(list(dict.fromkeys(own))).items()}
    canvas = Canvas(members, {arm: looks[arm] for arm in compared.seeds}, layout, folder / "figures")
    figures = draw_all(canvas, numbers, compared, families(options, compared.baseline))
    sentences, notes = headline(numbers, compared, confidence), [*_notes(members, len(found), confidence), *told]
    if missing:
        notes.insert(0, f"No run of {len(missing)} of {len(arms or ())} arms is there: {', '.join(missing)}.")
    left_out = [(labels[i], run) for i, run in enumerate(found) if i not in positions]
    write_page(
        folder,
        title=title,
        command=_command(),
        headline=sentences,
        notes=notes,
        tables=tables,
        layout=layout,
        figures=figures,
        used=members,
        left_out=left_out,
        missing=missing,
    )
    _tell([*sentences, *notes], left_out)
    log.info("%-8s %s", "tables", ", ".join(str(folder / f"{table.name}.md") for table in tables) or "none")
    files = sum(len(drawn.files) for drawn in figures)
    log.info("%-8s %d, PDF and PNG, in %s", "figures", files, folder / "figures")
    log.info("%-8s %s", "page", folder / "index.html")
    return _best(numbers, compared)


def read_runs(sources: str | Sequence[str]) -> list[Run]:
    """Every training run once, in the order of the sources."""
    projects = [run for text in _texts(sources) if text.startswith(PREFIX) for run in read_project(text)]
    runs = [run for root in folders_among(sources) for run in read_folder(root)]
    # Sources may lie in each other.
    return [*projects, *{Path(run.place).resolve(): run for run in runs}.values()]


def _in_order(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs of the named arms first, in this order."""
    places = {name: place for place, name in enumerate(names)}
    return sorted(runs, key=lambda run: places.get(str(run.settings.get("name")), len(places)))


def missing_arms(runs: Sequence[Run], expected: Sequence[str]) -> list[str]:
    """The names that no run has, finished or not."""
    there = {run.settings.get("name") for run in runs}
    return [name for name in dict.fromkeys(expected) if name not in there]


def folders_among(sources: str | Sequence[str]) -> list[Path]:
    """The sources that are no W&B projects."""
    return [Path(text) for text in _texts(sources) if not text.startswith(PREFIX)]


def _texts(sources: str | Sequence[str]) -> list[str]:
    texts = [sources] if isinstance(sources, str) else list(sources)
    if not texts:
        raise UserError("runs=[] names nothing: runs=multirun/... or runs=wandb:entity/project")
    return texts


def _check_evaluation(name: str | None, members: Sequence[Member]) -> None:
    if name is not None and members and not any(member.evaluation for member in members):
        names = sorted({e.name for member in members for e in member.run.evaluations})
        raise UserError(
            f"evaluation_name={name}: no finished run has one of that name; there are: {', '.join(names) or 'none'}"
        )


def _arms(members: Sequence[Member], baseline: str | None) -> Arms:
    seeds = Counter(member.arm for member in members)
    if baseline is not None and baseline not in seeds:
        of_value = [label for label in seeds if baseline in _values_in(label)]
        if len(of_value) != 1:
            options = "; ".join(of_value or seeds) or "none, no run has finished"
            what = "several arms have that value" if of_value else "no arm of finished runs has that label"
            raise UserError(f"baseline={baseline}: {what}; there are: {options}{_as_typed(of_value or list(seeds))}")
        baseline = of_value[0]
    return Arms(dict(seeds), baseline or next(iter(seeds), ""))


def _values_in(label: str) -> list[str]:
    """The settings of a label, and their values alone.

    >>> _values_in("edge_grpo, advantage=vanilla, loss.beta=0.1")
    ['edge_grpo', 'advantage=vanilla', 'vanilla', 'loss.beta=0.1', '0.1']
    """
    parts = (part.rpartition("=") for part in label.split(", "))
    return [text for key, equals, value in parts for text in dict.fromkeys((f"{key}{equals}{value}", value))]


def _as_typed(labels: Sequence[str]) -> str:
    """How the first label that Hydra would not read as it is is typed into a shell; "" where there is none."""
    special = next((label for label in labels if set(label) & set("=, ()")), None)
    return "" if special is None else "; a label is typed in quotes: " + shlex.quote(f'baseline="{special}"')


def _notes(members: Sequence[Member], total: int, confidence: float) -> list[str]:
    """What makes arms less comparable than a table suggests."""
    notes = []
    if len(members) < total:
        notes.append(f"{total - len(members)} of {total} runs are not in the tables and figures: see Runs.")
    shown = [member.evaluation for member in members if member.evaluation]
    if shown and len(shown) < len(members):
        lacking = [f"{member.arm}, seed {member.seed}" for member in members if not member.evaluation]
        notes.append(
            f"{len(lacking)} of {len(members)} finished runs have no evaluation of their end: {shortened(lacking)}."
        )
    if len({evaluation.settings for evaluation in shown}) > 1:
        notes.append("The evaluations differ in their number of samples or sampling: scores are not comparable.")
    if len({tuple(sorted(evaluation.problems.items())) for evaluation in shown}) > 1:
        notes.append("The evaluations are of different sets of problems: averages are not comparable.")
    levels = {evaluation.confidence for evaluation in shown} - {confidence}
    if levels:
        told = ", ".join(f"{100 * level:g} %" for level in sorted(levels))
        notes.append(
            f"Intervals over problems have the confidence of their evaluation ({told}), not {100 * confidence:g} %."
        )
    seeds = {arm: {m.seed for m in members if m.arm == arm} for arm in dict.fromkeys(m.arm for m in members)}
    if len({tuple(sorted(of)) for of in seeds.values()}) > 1:
        told = "; ".join(f"{arm}: {', '.join(map(str, sorted(of)))}" for arm, of in seeds.items())
        notes.append(f"The arms do not have the same seeds ({told}).")
    return notes


def _tell(sentences: Sequence[str], left_out: Sequence[tuple[str, Run]]) -> None:
    for text in sentences:
        log.info("%s", text)
    for arm, run in left_out:
        log.warning("not in the tables: %s, %s after %d iterations: %s", arm, run.state, run.iterations, run.place)


def _best(numbers: Numbers, arms: Arms) -> float | None:
    found = lookup(numbers.scores)
    keys = [(arm, *column) for column in numbers.compared[:1] for arm in arms.seeds]
    return max((found[key].value for key in keys if key in found), default=None)


def _command() -> str:
    """As it was typed."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return shlex.join(["edge-grpo-report", *map(str, typed)])
