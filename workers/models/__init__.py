"""Modelling classes that Transformers lacks, so that no checkpoint needs code from a hub."""


def register() -> None:
    """Make the Auto classes of Transformers know these models, in this process; may be called again."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    from workers.arch.vila import VILA
    from workers.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM
    from workers.models.vila import VilaConfig, VilaForConditionalGeneration
    from workers.models.vila_processor import VilaProcessor

    AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
    AutoConfig.register(VilaConfig.model_type, VilaConfig, exist_ok=True)
    AutoModelForImageTextToText.register(VilaConfig, VilaForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(VilaConfig, VilaProcessor, exist_ok=True)
    renamings: list[WeightConverter | WeightRenaming]
    renamings = [WeightRenaming(source_patterns=pattern, target_patterns=name) for pattern, name in VILA.renamed]
    register_checkpoint_conversion_mapping(VilaConfig.model_type, renamings, overwrite=True)
