"""A plugin of vLLM that loads what its own models do not: layers of derived models that differ from each other.

vLLM finds `register` through the entry point group vllm.general_plugins and calls it in each of its processes. Nothing
here imports vLLM, torch or transformers before that.
"""

from __future__ import annotations


def register() -> None:
    """Tell vLLM of our models and of how their configs are read; what vLLM loads by itself stays as it is.

    Where vLLM lacks something that the plugin needs, one line of its log says so and nothing is changed.
    """
    from puzzlebench.vllm_plugin.registering import register_all

    register_all()
