"""Save and load a student as huggingface_hub does: ``from_pretrained`` and its relatives."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from huggingface_hub import ModelCard, ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from dskd.errors import InputError, first_line
from dskd.storage.atomic import replace_file
from dskd.storage.weights import write_weights

if TYPE_CHECKING:
    from typing_extensions import Self

    from dskd.deploy.student import DeployedStudent

WEIGHTS, CARD = constants.SAFETENSORS_SINGLE_FILE, "README.md"
WRITTEN_BY = "Written by [dskd]("
"""Marks the cards of this package."""
log = logging.getLogger("dskd")


class HubStudent(ModelHubMixin):
    """What a `dskd.deploy.student.DeployedStudent` has from huggingface_hub's mixin.

    ``save_pretrained(folder)`` writes ``model.safetensors``, ``config.json`` and the model card,
    ``push_to_hub(repo_id)`` uploads them, and ``from_pretrained`` reads a folder or a repository.
    """

    _hub_mixin_config: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # not from the arguments

    # The model card needs the class of the student, so these imports wait until it exists.

    def _save_pretrained(self, save_directory: Path) -> None:
        from dskd.deploy.input_contract import CONTRACT, InputContract

        student = cast("DeployedStudent", self)
        if not student.metadata:
            raise InputError("only a student of a run or of a file can be saved; load it first")
        text = InputContract(student, None, normalizes=False).text()
        weights = write_weights(
            student.model.module, student.metadata, {CONTRACT: text, "format": "pt"}
        )
        config = json.dumps({"dskd": student.metadata}, indent=2, ensure_ascii=False)
        replace_file(save_directory / constants.CONFIG_NAME, f"{config}\n".encode())
        replace_file(save_directory / WEIGHTS, weights)
        _remove_card(save_directory / CARD, student.card)

    def generate_model_card(self, license: str | None = None) -> ModelCard:
        """Writes the model card; a student that came with one keeps it.

        Args:
            license: Of the weights, as in ``apache-2.0``. A card that is kept gets it, too.
        """
        from dskd.deploy.model_card import license_text, saved_card

        student = cast("DeployedStudent", self)
        if not student.card:
            return saved_card(student, license)
        card = ModelCard(student.card)
        if license is not None:
            before = license_text(card.data.get("license"))
            card.text = card.text.replace(before, license_text(license), 1)
            card.data["license"] = license
        return card

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a student from a folder of ``save_pretrained``, or from the Hub.

        Args:
            pretrained_model_name_or_path: The folder, or the name of a repository.
            **options: Those of huggingface_hub, such as ``revision``; ``student``, the module, if
                it was given in Python; ``allow_code``, if a model ``package.module:function`` may
                run.

        Raises:
            InputError: There is no student.
        """
        try:
            loaded: Self = super().from_pretrained(pretrained_model_name_or_path, **options)
        except InputError:
            raise
        except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
            raise InputError(
                f"cannot load a student from {pretrained_model_name_or_path}: {first_line(error)}; "
                "give a folder that save_pretrained wrote, or a repository of the Hub"
            ) from error
        return loaded

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        from dskd.deploy.student import load_folder

        folder = Path(model_id)
        if not folder.is_dir():
            paths = [
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
                for name in (CARD, WEIGHTS)
            ]
            folder = Path(paths[-1]).parent
        return cast("Self", load_folder(folder, **model_kwargs))


def _remove_card(path: Path, card: str | None) -> None:
    """Removes the card of an earlier student, because the mixin of huggingface_hub replaces none.

    Args:
        path: The card in the folder.
        card: That of the student; None if it has none yet.
    """
    if not path.is_file():
        return
    found = path.read_text(encoding="utf-8", errors="replace")
    if WRITTEN_BY in found:
        path.unlink()
    elif found != card:
        log.warning(
            "%s stays, because dskd did not write it, and may describe another student; remove it "
            "and save again to have the card of this one written",
            path,
        )
