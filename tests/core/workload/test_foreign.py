"""docs/from-axolotl-and-trl.md: its workloads are possible, and its tables have every key of the configurations that they translate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.core.measurement.plan import make_plan

PAGE = (Path(__file__).parents[3] / "docs" / "from-axolotl-and-trl.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
WANDB = "wandb_project wandb_entity wandb_watch wandb_name wandb_log_model"
# the keys of each public file at the commit that the page links
KEYS = {
    "QLoRA of Llama 3 8B": f"""base_model model_type tokenizer_type load_in_8bit load_in_4bit strict datasets dataset_prepared_path
        val_set_size output_dir adapter lora_model_dir sequence_len sample_packing pad_to_sequence_len lora_r lora_alpha lora_dropout
        lora_target_modules lora_target_linear lora_fan_in_fan_out {WANDB} gradient_accumulation_steps micro_batch_size num_epochs
        optimizer lr_scheduler learning_rate train_on_inputs group_by_length bf16 fp16 tf32 gradient_checkpointing
        early_stopping_patience resume_from_checkpoint local_rank logging_steps xformers_attention flash_attention warmup_steps
        evals_per_epoch eval_table_size saves_per_epoch debug deepspeed weight_decay fsdp fsdp_config special_tokens""",
    "full fine-tuning of Llama 3.1 8B": f"""base_model plugins liger_rope liger_rms_norm liger_glu_activation
        liger_fused_linear_cross_entropy chat_template datasets dataset_prepared_path val_set_size output_dir sequence_len
        sample_packing pad_to_sequence_len {WANDB} gradient_accumulation_steps micro_batch_size num_epochs optimizer lr_scheduler
        learning_rate bf16 tf32 gradient_checkpointing gradient_checkpointing_kwargs resume_from_checkpoint logging_steps attention
        warmup_steps evals_per_epoch saves_per_epoch weight_decay fsdp fsdp_config.fsdp_limit_all_gathers
        fsdp_config.fsdp_sync_module_states fsdp_config.fsdp_offload_params fsdp_config.fsdp_use_orig_params
        fsdp_config.fsdp_cpu_ram_efficient_loading fsdp_config.fsdp_auto_wrap_policy fsdp_config.fsdp_transformer_layer_cls_to_wrap
        fsdp_config.fsdp_state_dict_type fsdp_config.fsdp_sharding_strategy fsdp_config.fsdp_backward_prefetch special_tokens""",
    "gpt-oss 20B": """dtype model_name_or_path packing packing_strategy run_name attn_implementation dataset_num_proc dataset_name
        gradient_checkpointing max_length per_device_train_batch_size num_train_epochs logging_steps warmup_ratio lr_scheduler_type
        lr_scheduler_kwargs output_dir report_to seed accelerate.compute_environment accelerate.debug
        accelerate.deepspeed_multinode_launcher accelerate.gradient_accumulation_steps accelerate.offload_optimizer_device
        accelerate.offload_param_device accelerate.zero3_init_flag accelerate.zero3_save_16bit_model accelerate.zero_stage
        accelerate.distributed_type accelerate.downcast_bf16 accelerate.machine_rank accelerate.main_training_function
        accelerate.mixed_precision accelerate.num_machines accelerate.num_processes accelerate.rdzv_backend accelerate.same_network
        accelerate.tpu_env accelerate.tpu_use_cluster accelerate.tpu_use_sudo accelerate.use_cpu""",
}


def parts(title: str) -> tuple[dict[str, Any], list[list[str]]]:
    """Return the workload of a section, and the cells of its table."""
    (section,) = (one for one in SECTIONS if title in one.splitlines()[0])
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return yaml.safe_load(block), rows


@pytest.mark.parametrize("title", KEYS)
def test_no_key_is_left_out(title: str) -> None:
    """Each key is in one row of the table, and the table has no others."""
    _, rows = parts(title)
    found = [key for row in rows for key in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(found) == sorted(KEYS[title].split())


@pytest.mark.parametrize("title", KEYS)
def test_the_workload_has_what_the_table_says(title: str) -> None:
    """Each property in the table has this value in the workload, each of the workload is in the table or the method, and it is possible."""
    workload, rows = parts(title)
    named: dict[str, Any] = {}
    for row in rows:
        for text in re.findall(r"`([a-z_]+: [^`]+)`", row[2]):
            named |= yaml.safe_load(text)
    assert named.items() <= workload.items()
    assert set(workload) - set(named) <= {"method"}
    values = {name: value for name, value in workload.items() if name != "method"}
    plan = make_plan("sfttrainer", f"finetune_{workload['method']}_benchmark", values)
    assert plan.workload.number_gpus == workload["number_gpus"]
