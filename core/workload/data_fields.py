"""The properties of a workload that choose its data, and the tokens of them that carry loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from .where import TRL, where


class DataFields(pydantic.BaseModel):
    """The part of ``fields.Workload`` about data and loss."""

    dataset_id: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=4096,
            description="Synthetic tokens by name of a length distribution, or the path of a .jsonl or .parquet file on every node.",
            json_schema_extra=where(examples=("synthetic-fixed", "synthetic-uniform", "synthetic-lognormal")),
        ),
    ] = "synthetic-fixed"
    dataset_text_field: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=256,
            description="Column of the data set that holds the text.",
            json_schema_extra=where(examples=("text",)),
        ),
    ] = "text"
    dataset_image_field: Annotated[
        str,
        pydantic.Field(
            max_length=256,
            description="Column of the .parquet data set that holds the image; any name for synthetic-image; empty: no images.",
            json_schema_extra=where(methods=("full", "lora"), examples=("", "image")),
        ),
    ] = ""
    dataloader_num_workers: Annotated[
        int,
        pydantic.Field(
            ge=0,
            le=64,
            description="Processes of each training process that prepare images in advance; 0: each step prepares its own.",
            json_schema_extra=where(methods=("full", "lora")),
        ),
    ] = 0
    synthetic_prompt_share: Annotated[
        float,
        pydantic.Field(
            ge=0,
            lt=1,
            allow_inf_nan=False,
            description="Share of prompt tokens in each synthetic sample; they carry no loss unless completion_only_loss is false.",
        ),
    ] = 0.0
    completion_only_loss: Annotated[
        Literal["auto", True, False],
        pydantic.Field(
            description="Loss on completions only, not on prompts. auto: where rows have prompt and completion, as in TRL."
        ),
    ] = "auto"
    assistant_only_loss: Annotated[
        bool,
        pydantic.Field(
            description="Loss on the assistant's tokens of chats only; the chat template marks them with {% generation %}."
        ),
    ] = False
    loss_type: Annotated[
        Literal["nll", "dft"],
        pydantic.Field(
            description="nll: cross-entropy; dft: that of dynamic fine-tuning, weighted by each token's probability.",
            json_schema_extra=where(stacks=TRL),
        ),
    ] = "nll"

    @pydantic.field_validator("completion_only_loss", mode="before")
    @classmethod
    def _restore_boolean(cls, value: Any) -> Any:
        # ado stores a boolean as a number
        return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value
