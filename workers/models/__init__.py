"""Modelling classes that Transformers lacks, so that no checkpoint needs code from a hub."""


def register() -> None:
    """Make AutoConfig and AutoModelForCausalLM know these models, in this process; may be called again."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from workers.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM

    AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
