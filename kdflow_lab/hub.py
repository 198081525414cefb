"""From the name of a model to a local folder."""

from __future__ import annotations

from pathlib import Path

from kdflow_lab.errors import ModelError, nearest

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
"""What a causal language model needs; pickled weights are never fetched."""


def resolve_model(name: str) -> str:
    """Return the local folder of `zoo/…`, of a folder, or of a hub id (downloaded if needed).

    Raises:
        ModelError: There is no such model.
    """
    if name.startswith("zoo/"):
        from kdflow_lab import zoo

        return str(zoo.path(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(
                f"{folder} is not a model folder: it has no config.json. Pass a folder in Hugging "
                "Face format, as save_pretrained or run.export writes it."
            )
        return str(folder.absolute())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no model folder {name!r}.{_neighbour(folder)}")
    return _download(name)


def pin_name(name: str) -> str:
    """Return a model's name as it holds in any working directory; nothing is downloaded.

    A local folder becomes its absolute path; `zoo/…` and hub ids stay.

    Raises:
        ConfigError: There is no zoo model of that name; the nearest is offered.
        ModelError: A path that does not exist, or a folder that is no model.
    """
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir()
    if name.startswith("zoo/"):
        resolve_model(name)
        return name
    return resolve_model(name) if is_path else name


def _download(name: str) -> str:
    """Fetch a model from the hub, or find it in the hub's local cache."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=FILES)
    except Exception as error:  # the hub's errors have no common root, and offline is the usual one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"There is no folder {name!r}, and the hub cannot give a model of that name: {reason} "
            "Pass a local folder, a hub id, or a model of the zoo such as 'zoo/teacher'."
        ) from None


def _neighbour(folder: Path) -> str:
    """Offer the folder's sibling with the nearest name."""
    if not folder.parent.is_dir():
        return f" {folder.parent} does not exist either."
    return nearest(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
