"""What each command does: one call of `Lab` or `Run`.

Values were checked by name before; the Python calls check them by meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError
from kdflow_lab.run import Run
from kdflow_lab.rundir import ENDED

if TYPE_CHECKING:
    from kdflow_lab.session import Session


def up(session: Session, given: dict[str, Any]) -> Any:
    """Bring the lab up, a new one where it is described."""
    return session.up(given)


def down(session: Session, given: dict[str, Any]) -> None:
    """Close the lab."""
    lab = session.current_lab()
    if lab is None:
        raise ConfigError(f"There is no lab to close. {session.no_lab}")
    lab.close()


def status(session: Session, given: dict[str, Any]) -> Any:
    """Show the lab, or a run."""
    lab = session.current_lab()
    if lab is not None and not given:
        return lab.status()
    from kdflow_lab.bars import in_notebook
    from kdflow_lab.widgets.report import report

    run = session.run(given.get("run"), given.get("dir"))
    if in_notebook():
        return run.plot()
    session.say(report(run))
    return None


def doctor(session: Session, given: dict[str, Any]) -> Any:
    """Look at the lab's machine with the lab's options, or with those that are given."""
    lab = session.current_lab()
    if lab is not None and not given:
        return lab.doctor()
    from kdflow_lab.doctor import examine

    return examine(**given)


def plan(session: Session, given: dict[str, Any]) -> Any:
    """Predict what a run would take."""
    return session.lab().plan(**given)


def align(session: Session, given: dict[str, Any]) -> Any:
    """Show how both tokenizers cut a text."""
    if "text" not in given:
        raise ConfigError('Nothing to align. Give a text: align "It is 14 September."')
    return session.lab().align(given["text"])


def distill(session: Session, given: dict[str, Any]) -> Run:
    """Start a run."""
    return session.lab().distill(**given)


def sft(session: Session, given: dict[str, Any]) -> Run:
    """Start a run on the answers alone."""
    return session.lab().sft(**given)


def sweep(session: Session, given: dict[str, Any]) -> Any:
    """On a line an option that varies is given several times, in a cell it has a list."""
    options = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in given.items()
    }
    sweep = session.lab().sweep(**options)
    return sweep.wait() if session.is_terminal else sweep


def capture(session: Session, given: dict[str, Any]) -> Any:
    """Fill the cache."""
    return session.lab().capture(**given)


def ask(command: str) -> Any:
    """Build the call of `Run.pause`, `stop` or `checkpoint`."""

    def call(session: Session, given: dict[str, Any]) -> None:
        run = session.run(given.get("run"), given.get("dir"))
        getattr(run, command)()
        session.say(f"{run.name}: {command} asked for; it takes effect before the next step.")

    return call


def set_options(session: Session, given: dict[str, Any]) -> None:
    """Change options of a run that goes on."""
    run = session.run(given.pop("run", None), given.pop("dir", None))
    run.set(**given)
    changes = ", ".join(f"{name} = {value}" for name, value in given.items())
    session.say(f"{run.name}: {changes} from the next step on.")


def resume(session: Session, given: dict[str, Any]) -> Run | None:
    """A paused run hears of it; one that has ended, or left the engines, starts again."""
    run = session.run(given.pop("run", None), given.pop("dir", None))
    if run.state in ENDED or run.parked:
        return session.lab_of(run).resume(run, **given)
    run.resume(**given)
    session.say(f"{run.name}: resume asked for; it takes effect before the next step.")
    return None


def fork(session: Session, given: dict[str, Any]) -> Run:
    """Start another run from a checkpoint."""
    run, step = session.run_at(given.pop("run", None), given.pop("dir", None))
    step = given.pop("step", None) or step
    return session.lab_of(run).fork(run, step=step, **given)


def attach(session: Session, given: dict[str, Any]) -> Any:
    """Take hold of a living lab."""
    return session.attach(given.get("lab"))


def compare(session: Session, given: dict[str, Any]) -> Any:
    """Lay two runs over each other; a fork and its parent if one is named."""
    folder = given.get("dir")
    named = [session.run(given[name], folder) for name in ("run", "other") if name in given]
    if len(named) < 2:
        first = named[0] if named else session.run(None, folder)
        parent = first.parent
        if parent is None:
            raise ConfigError(
                f"{session.prefix} compare needs two runs: compare RUN OTHER. A fork is compared "
                "with its parent where no other is given."
            )
        named = [session.run(parent["run"]), first]
    comparison = named[0].compare(*named[1:])
    if given.get("save"):
        session.say(f"Written: {comparison.save(given['save'])}")
    return comparison


def rollouts(session: Session, given: dict[str, Any]) -> Any:
    """Browse what a run's student wrote, or let a model of the lab write now."""
    run, folder = given.pop("run", None), given.pop("dir", None)
    if not given:
        return session.run(run, folder).rollouts()
    if run is not None:
        raise ConfigError(
            f"{session.prefix} rollouts RUN shows what that run wrote and takes no other options. "
            "To let a model write now, leave RUN out: rollouts --data zoo/tasks --model RUN."
        )
    if "data" not in given:
        raise ConfigError(f"Nothing to answer. Give prompts: {session.prefix} rollouts --data …")
    model = given.get("model")
    if isinstance(model, str) and model in ("latest", *session.run_names(folder)):
        given["model"] = session.run(model, folder)
    return session.lab(like=given.get("model")).rollouts(**given)


def replay(session: Session, given: dict[str, Any]) -> Any:
    """Find what made a step fail."""
    run, step = session.run_at(given.get("run"), given.get("dir"))
    return run.replay(step)


def runs(session: Session, given: dict[str, Any]) -> list[Run]:
    """List the runs of a folder."""
    from kdflow_lab.run import runs

    return runs(given.get("dir") or session.folder())


def evaluate(session: Session, given: dict[str, Any]) -> Any:
    """A model that names a run is that run; the lab knows all other models itself."""
    folder, save = given.pop("dir", None), given.pop("save", None)
    names = ["latest", *session.run_names(folder)]
    models = [
        session.run(one, folder)
        if isinstance(one, str) and (one in names or (Path(one) / "events.jsonl").is_file())
        else one
        for one in given.pop("model", [])
    ]
    if len(models) == 1 and isinstance(models[0], Run):
        run = models[0]
        if run.state in ("running", "paused"):
            if given:
                raise ConfigError(
                    "A run that is training is scored on its own eval_rows: no options."
                )
            run.evaluate()
            session.say("Asked for; the figures come as an `evaluated` event before the next step.")
            return None
    lab = session.lab(like=next((one for one in models if isinstance(one, Run)), None))
    several: Any = models or ["student"]
    if len(models) == 1 and isinstance(models[0], list | tuple | dict):
        several = models[0]  # what stood for $name
    elif len(models) < 2 and save is None:
        one: dict[str, Any] = {"model": models[0]} if models else {}
        return lab.evaluate(**one, **given)
    table = lab.evaluate(model=several, **given)
    if save is not None:
        session.say(f"Written: {table.save(save)}")
    return table


def export(session: Session, given: dict[str, Any]) -> Path:
    """Write a student's folder."""
    name, path = given.get("run"), given.get("path")
    stem = name.partition("@")[0] if isinstance(name, str) else name
    if path is None and stem not in ("latest", *session.run_names(given.get("dir"))):
        name, path = None, name  # one word is the folder; the run is the newest
    if path is None:
        raise ConfigError(f"{session.prefix} export needs a folder: export [RUN[@STEP]] PATH.")
    run, step = session.run_at(name, given.get("dir"))
    return run.export(path, step=step, **{key: given[key] for key in ("adapter",) if key in given})


def inspect(session: Session, given: dict[str, Any]) -> Any:
    """With a text, look at it now; without, at the probes of a run."""
    quantity = {"quantity": given["by"]} if "by" in given else {}
    if "text" in given:
        lens = _inspect_text(session, given, quantity)
        return _printed(session, lens.source, given) if session.is_terminal else lens
    if "top" in given:
        raise ConfigError("--top goes with --text: a run's probes list what they list.")
    run, step = session.run_at(given.get("run"), given.get("dir"))
    if not session.is_terminal:
        return run.inspect(step, **quantity)
    probes = run.probes
    if step is None and run.state not in ENDED and not run.parked:
        run.request("inspect")
        session.say(f"{run.name}: asked for new probes; they come before its next step.")
    if step is None and probes.newest is None:
        if run.state in ENDED:
            run.inspect()  # says what to do
        return None
    at = step if step is not None else probes.newest
    return _printed(session, probes.at(at or 0), given)


def _inspect_text(session: Session, given: dict[str, Any], quantity: dict[str, Any]) -> Any:
    texts = given["text"]
    options = {**quantity, **({"top": given["top"]} if "top" in given else {})}
    run = None
    if "run" in given:
        run, step = session.run_at(given["run"], given.get("dir"))
        if step is not None:
            raise ConfigError(
                "A text is looked at with the run's last checkpoint: leave @STEP out."
            )
        options["model"] = run
    lab = session.lab(like=run)
    return lab.inspect([texts] if isinstance(texts, str) else texts, **options)


def _printed(session: Session, inspection: Any, given: dict[str, Any]) -> Any:
    from kdflow_lab.widgets._console import Printed

    return Printed(inspection, given.get("by"))


def plot(session: Session, given: dict[str, Any]) -> Any:
    """Show a run's figure."""
    figure = session.run(given.get("run"), given.get("dir")).plot()
    if given.get("save"):
        session.say(f"Written: {figure.save(given['save'])}")
    return figure
