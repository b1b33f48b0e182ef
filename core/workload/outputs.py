"""The properties that experiments return, from identifier to description with unit, in the order of a report. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

# share of the CPU time that training could use; below it, other work on the machine determines the rate
LEAST_CPU_SHARE_PERCENT = 90.0

OUTPUTS: Mapping[str, str] = {
    "is_valid": "1: the workload ran; 0: it cannot run on this hardware.",
    "failure": "none, gpu_oom, host_oom, predicted_oom or invalid_configuration.",
    "train_runtime_s": "Time of the measured steps, s.",
    "step_time_median_s": "Median time of an optimizer step, s.",
    "step_time_mean_s": "Mean time of an optimizer step, s.",
    "step_time_p95_s": "95th percentile of the time of an optimizer step, s.",
    "step_time_cv": "Standard deviation of step times over their mean.",
    "first_step_s": "Time of the first step, which is warm-up unless it is the only step, s.",
    "warmup_steps": "Warm-up steps at the beginning, not measured.",
    "measured_steps": "Steps that are measured.",
    "steady": "1: the rate had converged at the end; on CPUs also: training got at least 90 % of the CPU time that it could use.",
    "train_samples_per_second": "Samples per second, all devices.",
    "train_steps_per_second": "Optimizer steps per second.",
    "train_tokens_per_second": "Token slots per second, padding included, all devices.",
    "dataset_tokens_per_second": "Real tokens per second, padding excluded, all devices.",
    "trained_tokens_per_second": "Tokens that carry loss per second, all devices.",
    "train_tokens_per_second_per_gpu": "Token slots per second and GPU.",
    "dataset_tokens_per_second_per_gpu": "Real tokens per second and GPU.",
    "trained_tokens_per_second_per_gpu": "Tokens that carry loss per second and GPU.",
    "throughput_ci95_percent": "Half-width of the 95 % confidence interval of the mean step time, %.",
    "model_flops_per_token": "FLOP of forward and backward pass per token slot, without recomputation.",
    "tflops_per_device": "Model TFLOP per second and device.",
    "mfu_percent": "Model TFLOP per second over the device's dense peak, %.",
    "limit_percent": "Token slots per second over the bound from the device's peak rates, as tokens_per_second_limit of an estimate, %.",
    "torch_peak_allocated_gib": "Peak of torch's allocated memory, largest of the ranks, GiB.",
    "torch_peak_reserved_gib": "Peak of torch's reserved memory, largest of the ranks, GiB.",
    "gpu_memory_peak_gib": "Peak memory in use of a GPU, by the driver, GiB.",
    "gpu_memory_utilization_min": "GPU memory in use, time-mean of the GPU with the least, %.",
    "gpu_memory_utilization_avg": "GPU memory in use, time-mean over all GPUs, %.",
    "gpu_memory_utilization_max": "GPU memory in use, time-mean of the GPU with the most, %.",
    "gpu_memory_utilization_peak": "GPU memory in use, peak over time and GPUs, %.",
    "gpu_compute_utilization_min": "GPU compute utilisation, time-mean of the GPU with the least, %.",
    "gpu_compute_utilization_avg": "GPU compute utilisation, time-mean over all GPUs, %.",
    "gpu_compute_utilization_max": "GPU compute utilisation, time-mean of the GPU with the most, %.",
    "gpu_power_watts_min": "GPU power, time-mean of the GPU with the least, W.",
    "gpu_power_watts_avg": "GPU power, time-mean over all GPUs, W.",
    "gpu_power_watts_max": "GPU power, time-mean of the GPU with the most, W.",
    "gpu_power_percent_min": "GPU power over its limit, time-mean of the GPU with the least, %.",
    "gpu_power_percent_avg": "GPU power over its limit, time-mean over all GPUs, %.",
    "gpu_power_percent_max": "GPU power over its limit, time-mean of the GPU with the most, %.",
    "energy_joules": "Energy of the GPUs in the measured phase, J.",
    "energy_joules_per_token": "Energy of the GPUs per real token, J.",
    "cpu_compute_utilization": "CPU utilisation of the training processes, % of one core.",
    "cpu_share_percent": "CPU time of the training processes over that time plus their waiting for a CPU, %; low on a busy machine.",
    "dataset_tokens_per_cpu_second": "Real tokens per second of CPU time of training on CPUs; other work on the machine changes it little.",
    "cpu_memory_peak_gib": "Peak resident memory of the training processes, GiB.",
    "usd_per_million_tokens": "Cost of a million real tokens at the configured price of a device-hour, USD.",
    "loss_first": "Loss of the first step, mean over trained tokens.",
    "loss_last": "Loss of the last step, mean over trained tokens.",
    "loss_finite": "1: the loss of every step is finite.",
    "startup_s": "Time until the training processes were ready, s.",
    "model_load_s": "Time to build or load the model, s.",
    "total_s": "Time of the measurement without the wait for devices, start of processes included, s.",
    "model_parameters": "Parameters of the model, without adapters.",
    "trainable_parameters": "Parameters that are trained.",
}

STABILITY_OUTPUTS: Mapping[str, str] = {
    "is_valid": "1: the workload was run; 0: it is an impossible combination.",
    "failure": "none or invalid_configuration.",
    "f_gpu_oom": "Fraction of the runs in which a GPU ran out of memory.",
    "f_other_error": "Fraction of the runs that failed with another error.",
    "f_no_error": "Fraction of the runs without an error.",
}

MEMORY_OUTPUTS: Mapping[str, str] = {
    "is_valid": "1: the estimate was made; 0: the workload is impossible or cannot be traced.",
    "failure": "none or invalid_configuration.",
    "memory_estimate_gib": "Predicted peak of torch's allocated memory on each device, GiB.",
    "memory_parameters_gib": "Parameters and buffers at the peak, those gathered by FSDP included, GiB.",
    "memory_gradients_gib": "Gradients at the peak, buckets of DDP included, GiB.",
    "memory_optimizer_gib": "Optimizer state at the peak, GiB.",
    "memory_activations_gib": "Activations saved for the backward pass at the peak, GiB.",
    "memory_temporaries_gib": "Everything else at the peak, recomputed activations included, GiB.",
    "memory_reserved_gib": "Predicted peak of the memory that torch's allocator reserves on each device, GiB.",
    "device_memory_gib": "Memory of a device of gpu_model, GiB.",
    "fits": "1: the memory that the allocator needs fits the device; 0: it does not.",
    "largest_batch_size": "Largest batch_size (of all devices) predicted to fit, up to 65,536 and 4,194,304 tokens per device; 0: none.",
    "minimum_gpus": "Fewest of 1, 2, 4, ... 512 GPUs on which it fits with the same samples on each, under FSDP if several; 0: none.",
    "step_time_limit_s": "Bound: least time of an optimizer step at the device's peak rates, with samples of model_max_length, s.",
    "tokens_per_second_limit": "Bound: most token slots per second, padding included, all devices; follows from step_time_limit_s.",
    "usd_per_million_tokens_limit": "Bound: least cost of a million token slots at the configured price of a device-hour, USD.",
    "total_s": "Time of the whole estimate, s.",
}

# properties computed from device samples; all others are computed from records
DEVICE_OUTPUTS = tuple(name for name in OUTPUTS if name.startswith(("gpu_", "cpu_")) or name == "energy_joules")
