"""vLLM's reading of config.json, with our models told apart first. Imports vLLM and transformers.

transformers either drops what a config states per layer or refuses to answer for the whole model, depending on its
version. So a config that the plugin takes is never given to it as it is.
"""
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import vllm
from transformers import CONFIG_MAPPING, PretrainedConfig
from vllm.transformers_utils.config import HFConfigParser

from puzzlebench.vllm_plugin.configs import TRIED, plain_config


class PuzzlebenchConfigParser(HFConfigParser):
    """vLLM's own parser, except for configs that `plain_config` takes."""

    def parse(
        self,
        model: str | Path,
        trust_remote_code: bool,
        revision: str | None = None,
        code_revision: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Any]:
        """The raw config and the config object; no code beside the weights is run for a config of ours."""
        try:
            raw, _ = PretrainedConfig.get_config_dict(model, revision=revision, local_files_only=_offline())
        except Exception:  # whatever is wrong, vLLM's own parser says it as it always does
            raw = {}
        plain = plain_config(raw)
        if plain is None:
            stock: tuple[dict[str, Any], Any] = super().parse(
                model, trust_remote_code, revision, code_revision, **kwargs
            )
            return stock
        if (version := vllm.__version__).partition("+")[0] not in TRIED:
            logging.getLogger("vllm.puzzlebench").warning(
                "puzzlebench's plugin loads %s; it was tried with vLLM %s, and this is %s",
                model,
                ", ".join(TRIED),
                version,
            )
        config = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
        config.name_or_path = str(model)
        return plain, config


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
