"""The models of a repository, by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from eca_service.contract import Contract, ContractError, read
from eca_service.errors import ServiceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The newest version of a model, and the folder that holds its golden images."""

    contract: Contract
    folder: Path


class Registry:
    """What a repository holds, read once. A model whose contract cannot be read is left out, with a line in the log."""

    def __init__(self, repository: Path, default: str | None) -> None:
        self.models: dict[str, Model] = {}
        for home in sorted(repository.iterdir()) if repository.is_dir() else []:
            versions = (
                sorted((v for v in home.iterdir() if v.name.isdigit()), key=lambda v: int(v.name))
                if home.is_dir()
                else []
            )
            if not versions:
                continue
            try:
                self.models[home.name] = Model(read(versions[-1]), versions[-1])
            except ContractError as error:
                logger.error("%s is not served: %s", home.name, error)
        eca = [name for name, model in self.models.items() if model.contract.attention == "eca"]
        self.default = default or next(iter(eca or self.models), None)

    def get(self, name: str | None, version: int | None = None) -> Model:
        """The model of that name, or the default one. Raises model_not_found or version_not_found."""
        wanted = name or self.default
        model = self.models.get(wanted) if wanted else None
        if model is None:
            known = ", ".join(self.models) or "none"
            raise ServiceError("model_not_found", f"there is no model {wanted!r}; there are: {known}")
        if version is not None and version != model.contract.version:
            raise ServiceError(
                "version_not_found", f"{wanted} is served in version {model.contract.version}, not {version}"
            )
        return model
